"""What Spark does: read a table, score it through a logged model, write a table."""
