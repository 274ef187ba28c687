# Two commands: `make serve` and `make test`. Both set up what they need in .venv.

BIN := .venv/bin
# Of the server, or of pytest: make serve ARGS='--port 10810 disk.img', make unit ARGS=tests/test_sizes.py
ARGS :=
# How long each target is fuzzed.
FUZZ_SECONDS := 60
TESTS_TMP := $(or $(TMPDIR),/tmp)

.PHONY: serve test lint types imports unit contracts explore fuzz histories tla format clean

serve:            ## serve the demonstration disk at nbd://localhost
	@tools/setup.sh serve
	$(if $(ARGS),,@echo "make serve: the server's options go into ARGS, such as: make serve ARGS='--port 10810'" >&2)
	@exec $(BIN)/python -m impl.server $(ARGS)

test:             ## everything that has to pass
	@tools/setup.sh test
	@$(MAKE) --no-print-directory lint types imports contracts unit

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

imports:
	$(BIN)/lint-imports

contracts:        ## CrossHair over the model's contracts; prints what it confirmed
	$(BIN)/python -m check.contracts

tla:              ## TLC and the twins over every configuration of specs/, those too large for the tests among them
	@tools/setup.sh test
	$(BIN)/python -m check.specs

unit:
	$(BIN)/python -m pytest $(ARGS)

explore:          ## the large bounds, on all processors; stop it when you like, it goes on from there
	@tools/setup.sh test
	$(BIN)/python -m check.explore.campaign --shape 1,1,1 --state explore-1-1-1.jsonl
	$(BIN)/python -m check.explore.campaign --shape 2,2 --blocks 1 --state explore-2-2-on-1.jsonl
	$(BIN)/python -m check.explore.campaign --shape 1,1,1 --blocks 3 --state explore-1-1-1-on-3.jsonl
	$(BIN)/python -m check.explore.campaign --shape 2,2 --state explore-2-2.jsonl

fuzz:             ## the codec against bytes that coverage leads to: make fuzz FUZZ_SECONDS=600
	@tools/setup.sh serve
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[fuzz]'
	$(BIN)/python -m check.fuzz all --seconds $(FUZZ_SECONDS)

histories:        ## the checker of histories beside the search, on every history of up to six requests on one granule
	@tools/setup.sh test
	HISTORIES_REQUESTS_MAX=6 $(BIN)/python -m pytest -s tests/test_history_zones.py -k every_history

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# fio leaves files of state, where it verifies.
# A test takes five minutes at most (pyproject.toml, timeout): a folder that is older than ten belongs to none that runs.
clean:            ## remove what the commands above make, and what tests leave that were killed
	rm -rf .venv .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist *.egg-info
	rm -f local-*-verify.state
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	-find $(TESTS_TMP) -maxdepth 1 -user "$$(id -u)" -name 'cowproof-test-*' -mmin +10 \
		-exec rm -rf --one-file-system {} +
