# Databricks notebook source
# MAGIC %md
# MAGIC # Phi-3 over a table
# MAGIC Log the model once, give a version an alias when it has passed its smoke test, and score a table with it. The package is a library of the cluster, or `%pip install` it; on a cluster, `spark.task.cpus` is the number of cores of a machine.

# COMMAND ----------

dbutils.widgets.text("weights", "/Volumes/main/phi3/weights/cpu-int4-rtn-block-32-acc-level-4")
dbutils.widgets.text("smoke", "/Volumes/main/phi3/weights/smoke.jsonl")
dbutils.widgets.text("model", "main.phi3.phi3_mini")
dbutils.widgets.text("input", "main.phi3.prompts")
dbutils.widgets.text("output", "main.phi3.completions")

weights, smoke, name, source, output = (
    dbutils.widgets.get(widget) for widget in ("weights", "smoke", "model", "input", "output")
)

# COMMAND ----------

# MAGIC %md
# MAGIC ## The model
# MAGIC By reference: the weights stay in the Volume, and each machine fetches and checks them once.

# COMMAND ----------

import phi3_batch

logged = phi3_batch.log_prompt_model(weights, by_reference=weights, registered_model_name=name)
promoted = phi3_batch.promote(name, logged.registered_model_version, smoke_file=smoke)
print(f"{promoted.model_uri} is models:/{name}@{promoted.alias}")

# COMMAND ----------

# MAGIC %md
# MAGIC ## What it will take

# COMMAND ----------

job = {"model": f"models:/{name}@champion", "input": source, "output": output, "max_tokens": 60}
planned = phi3_batch.plan(spark, **job)
print(f"{planned.rows:,} rows, {planned.requests:,} requests, {planned.forecast.hours:.2f} hours")

# COMMAND ----------

# MAGIC %md
# MAGIC ## Score
# MAGIC Run this cell again after an interruption, and it goes on where it was.

# COMMAND ----------

done = phi3_batch.score(spark, **job)
print(f"{done.rows_done:,} of {done.rows:,} rows, errors: {dict(done.errors)}")

# COMMAND ----------

answers = done.output.where("error is null").select("prompt", "completion", "completion_tokens")
answers.show(5)
