"""Spark as the engine of a close when one machine is outgrown: the same SQL text, the same Parquet, the same bytes.

ANSI mode is not a preference here but the condition of exactness: without it a sum that does not fit becomes NULL.
It is set, read back, and a session without it is refused. Knows nothing of what the text computes.
"""

from __future__ import annotations

import os
import shutil
import sys
from types import TracebackType
from typing import Any

from headwater.core.errors import InvariantError, MissingError
from headwater.store.close_duckdb import explained
from headwater.store.close_sql import Tables

LOCAL_CLUSTER = "local-cluster[2,1,1024]"
"""A master that starts two executors of one core and 1,024 MiB each as processes of their own."""


class SparkEngine:
    """A Spark session with ANSI arithmetic.

    Args:
        master: where to run, such as ``local[2]``, ``local-cluster[2,1,1024]`` or the address of a cluster.
        options: further Spark settings, for instance of an object store.

    Raises:
        MissingError: ``spark_missing`` or ``java_missing``.
        InvariantError: ``ansi_off``, when the session that was found has it switched off.
    """

    def __init__(self, master: str = "local[2]", *, options: dict[str, str] | None = None) -> None:
        try:
            from pyspark.errors import PySparkException
            from pyspark.sql import SparkSession
        except ImportError:
            raise MissingError(
                "Spark is not installed", code="spark_missing", fix="pip install 'headwater[spark]'"
            ) from None
        if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
            raise MissingError(
                "there is no java", code="java_missing", fix="install a Java 17 runtime, or set JAVA_HOME"
            )
        self._errors: Any = PySparkException
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder: Any = SparkSession.builder.master(master).appName("headwater close")
        settings = {
            "spark.sql.ansi.enabled": "true",
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": "4",
            "spark.ui.showConsoleProgress": "false",
            "spark.task.maxFailures": "1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            **(options or {}),
        }
        for name, value in settings.items():
            builder = builder.config(name, value)
        self.session: Any = builder.getOrCreate()
        self.session.sparkContext.setLogLevel("ERROR")
        if self.session.conf.get("spark.sql.ansi.enabled") != "true":
            self.close()
            raise InvariantError(
                "spark.sql.ansi.enabled is off", code="ansi_off", fix="without it a sum can be lost; switch it on"
            )

    @property
    def executors_count(self) -> int:
        """Executors at work beside the driver."""
        return int(self.session.sparkContext._jsc.sc().getExecutorMemoryStatus().size()) - 1

    def run(self, sql: str, tables: Tables) -> Any:
        """As `Engine.run`."""
        try:
            for name, files in tables.items():
                frame = self.session.read.parquet(*(str(path) for path in files))
                frame.createOrReplaceTempView(name)
            return self.session.sql(sql).toArrow()
        except self._errors as error:
            raise explained(error) from error

    def close(self) -> None:
        """Stop the session and its executors."""
        self.session.stop()

    def __enter__(self) -> SparkEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
