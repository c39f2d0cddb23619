# make demo   the whole way on the embedded model: log, register, score, look
# make test   lint, types, import rules, and every test but those of make faults
# make faults what takes long: 200 kills of real jobs, 40 races of two, executors and workers killed
# make bench  every engine on a random model of real layer shapes; bench-short takes minutes
#
# Each starts from nothing but Python 3.11 and Java 17 or later; what they install is in .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Most of what is installed is never imported: it is not compiled now, but what is imported is, the
# first time. Where that was forbidden, each of hundreds of processes would do it again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable

.DELETE_ON_ERROR:
.PHONY: help demo test faults lint bench bench-short clean

help:
	@sed -n '1,4s/^# //p' Makefile

demo: $(VENV)/installed
	@$(BIN)/python jobs/demo.py

# Short-lived JVMs: compilers, of bytecode and of Spark's queries, cost them more than they give.
# Java's own limit of compiled code is too small for Spark at this level: it would throw code away
# and compile it again.
SHORT_LIVED := -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:ReservedCodeCacheSize=256m \
  -Dspark.sql.codegen.wholeStage=false -Dspark.sql.codegen.factoryMode=NO_CODEGEN
# what an archive does not fit, a JVM ignores; it need not say so in what tests read
test faults: export JDK_JAVA_OPTIONS := $(SHORT_LIVED) \
  -XX:SharedArchiveFile="$(abspath $(VENV)/spark.jsa)" -Xlog:disable
# two test processes on two processors: threads that wait for each other would take ten times as long
test faults: export OMP_NUM_THREADS := 1
# a file in one process, for its tests share what they make; in the order of names, for pytest-xdist
# would take the files with the most tests first, which are the quick ones
TWO_FILES := --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: lint $(VENV)/spark.jsa
	$(BIN)/pytest $(TWO_FILES) --durations 10

faults: $(VENV)/spark.jsa
	PHI3_BATCH_KILLS=200 PHI3_BATCH_RACES=20 $(BIN)/pytest $(TWO_FILES) -rP \
	  tests/faults tests/processes/test_spark_submit.py

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/installed-build
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/decode_step.py
	$(BIN)/python benchmarks/agreement.py
	$(BIN)/python benchmarks/full_size.py
	$(BIN)/python benchmarks/spark_job.py
	$(BIN)/python benchmarks/speed_plot.py
	$(BIN)/python benchmarks/two_worlds.py

bench-short: $(VENV)/installed-build
	$(BIN)/python benchmarks/engines.py --short

$(VENV)/spark.jsa: $(VENV)/installed-test tools/archive_spark_classes.py
	@JDK_JAVA_OPTIONS='$(SHORT_LIVED) -XX:ArchiveClassesAtExit="$(abspath $@)" -Xlog:disable' \
	  $(BIN)/python tools/archive_spark_classes.py

clean:
	rm -rf $(VENV) demo site

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -m phi3_batch.environment
	@echo "installing into $(VENV) (the first time takes some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) .
	@touch $@

$(VENV)/installed-%: $(VENV)/installed
	@$(INSTALL) '.[$*]'
	@touch $@
