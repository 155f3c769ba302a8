# Each target sets up what it needs in .venv, once, and again when pyproject.toml changes.
# A fresh machine needs Python 3.11 or later with venv, and gcc.

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet

# Asked for its version rather than looked up: a version manager's shim may exist and yet not run.
PYTHON ?= $(shell for candidate in python3.11 python3 python3.12 python3.13; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$candidate && break; done)

# The tests and the demonstration start hundreds of Python processes: each would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

# Modules with a .pxd file beside them are compiled when the package is installed, and again when they change.
TYPED := $(shell find broker clients -name '*.pxd')
# What is written in C, and not made by Cython.
WRITTEN := $(filter-out $(TYPED:.pxd=.c),$(shell find broker clients -name '*.[ch]'))
COMPILED := setup.py $(TYPED) $(TYPED:.pxd=.py) $(WRITTEN)

BRING_BACK := for library in $$(find broker clients -name '*.so.away'); do mv $$library $${library%.away}; done

.PHONY: demo test test-thorough test-bench test-plain test-gpu check fuzz bench clean

demo: $(VENV)/demo.stamp
	$(RUN) -m examples.training_loop

# More processes than a small machine has cores: half of the tests' time is waiting (tests/side_by_side.py).
QUICK := --processes 4 -m "not measurement"

test: $(VENV)/dev.stamp
	@$(BRING_BACK)
	$(RUN) -m pytest $(QUICK)

# All combinations of what is tested, and more examples: tests/thorough.py. Twice as long.
test-thorough: $(VENV)/dev.stamp
	@$(BRING_BACK)
	HYPOTHESIS_PROFILE=thorough $(RUN) -m pytest $(QUICK)

# Whether each peer that is installed can be measured.
test-bench: $(VENV)/dev.stamp
	@$(BRING_BACK)
	$(RUN) -m pytest tests/bench -m measurement

# The tests with nothing compiled, as on a machine without a compiler. What was compiled is away meanwhile.
test-plain: $(VENV)/dev.stamp
	find broker clients -name '*.so' -exec mv {} {}.away \;
	$(RUN) -m pytest $(QUICK); status=$$?; $(BRING_BACK); exit $$status

check: $(VENV)/dev.stamp
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy --strict broker clients

# Each parser with its corpus and 200,000 mutations of it; a whole broker with a tenth of that.
fuzz: $(VENV)/dev.stamp
	$(RUN) -m tests.fuzz --inputs 200000

# What takes a GPU, and figures of it; without one it says so and is done.
test-gpu: $(VENV)/dev.stamp $(VENV)/gpu.stamp
	$(RUN) -m tests.gpu

bench: $(VENV)/bench.stamp
	$(RUN) -m bench --json out/bench/figures.json --plots out/bench

clean:
	rm -rf $(VENV) build dist *.egg-info
	find broker clients \( -name '*.so' -o -name '*.so.away' \) -delete
	rm -f $(TYPED:.pxd=.c)

$(VENV)/venv.stamp:
	@test -n "$(PYTHON)" || { echo "tensorbus needs Python 3.11 or later; set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The extra's name is the stem: dev.stamp installs .[dev]. The stamp appears only after a complete install.
$(VENV)/%.stamp: $(VENV)/venv.stamp pyproject.toml $(COMPILED)
	@echo "installs .[$*] in $(VENV) and compiles, which takes minutes the first time"
	$(PIP) install --editable '.[$*]'
	@touch $@
