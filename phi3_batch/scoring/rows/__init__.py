"""DataFrame in, DataFrame out: what a model is asked for each row, and what becomes of its answers.

Nothing here writes a table.
"""
