"""Start Spark once for all JVMs of the tests: it leaves an archive of the classes it has loaded.

    JDK_JAVA_OPTIONS=-XX:ArchiveClassesAtExit=FILE python tools/archive_spark_classes.py

A JVM that gets the archive by -XX:SharedArchiveFile has not to read and verify the classes again
(https://docs.oracle.com/en/java/javase/17/vm/class-data-sharing.html).
"""

import tempfile
from pathlib import Path

from delta.tables import DeltaTable
from pyspark import SparkContext

from phi3_batch.scoring.session import get_session


def main() -> None:
    """Use Spark and Delta Lake as the tests do, and wait until the JVM has ended."""
    spark = get_session()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "table")
        rows = spark.range(10).selectExpr("id", "array(struct(string(id) AS content)) AS messages")
        rows.write.format("delta").save(path)
        table = DeltaTable.forPath(spark, path)
        merge = table.alias("old").merge(rows.alias("new"), "old.id = new.id")
        merge.whenMatchedUpdateAll().whenNotMatchedInsertAll().execute()
        spark.read.format("delta").load(path).groupBy("messages").count().orderBy("count").collect()
        table.history().collect()
    gateway = SparkContext._gateway
    assert gateway is not None, "a session has started it"
    spark.stop()
    gateway.proc.stdin.close()  # for which the JVM waits
    gateway.proc.wait()


if __name__ == "__main__":
    main()
