# `make demo` and `make test` set up the environment they need; `make lint` checks format and style; `make test-lm-eval`
# installs lm-evaluation-harness too.
PYTHON ?= python3

.PHONY: demo paper test test-slow gpu test-lm-eval lint

# fine-tunes, then tries both networks on text that is in no file
demo: .venv/installed
	.venv/bin/python train.py --desc demo --model_dir demo/model --data_dir demo/data --lr 3e-4 --lr_warmup 0.1 --n_batch 2 --n_iter 3 \
	  --share_context --embd_pdrop 0 --attn_pdrop 0 --resid_pdrop 0 --clf_pdrop 0 --submit --analysis
	@printf '\n%s\n' "The pre-trained language model continues a story:"
	@.venv/bin/python generate.py $(DEMO_GENERATE)
	@printf '\n%s\n' "The fine-tuned model chooses an ending of a story that is in no file:"
	@echo '$(DEMO_STORY)'
	@echo '$(DEMO_STORY)' | .venv/bin/python predict.py --desc demo
	@printf '\n%s\n' "Try both on a story of your own (in the words of demo/stories.txt):"
	@echo '.venv/bin/python generate.py $(DEMO_GENERATE)'
	@echo "echo '"'$(DEMO_STORY)'"' | .venv/bin/python predict.py --desc demo"

DEMO_GENERATE = --model_dir demo/model --prompt "Emma went to the lake on a hot day. Carl liked Emma a lot. She left her hat in the car." \
  --n_tokens 40 --temperature 0 --stop "true or false"
DEMO_STORY = {"context": "David had a ticket for an early train. Two hours went by. He forgot to set the alarm. The town was quiet.", \
"choices": ["David got on the train.", "David missed the train."]}

# the paper's Table 5 and figure 2 in miniature; stopped at any time, it goes on. PAPER_FLAGS="--seeds 1" for a first look
PAPER_FLAGS ?=

paper: .venv/installed
	.venv/bin/python -m demo.paper $(PAPER_FLAGS)

# two tests at a time, each with one thread. Not --dist loadfile: it waits for ever once a process of tests has died
test: .venv/installed-dev
	.venv/bin/python -m pytest -n 2 --dist worksteal

test-slow: .venv/installed-dev
	.venv/bin/python -m pytest -m slow -o faulthandler_timeout=14400

# the tests that need a CUDA device but no text, then the speed there, within 8 minutes: a table, and GPU_OUT with all
# figures. Needs no virtual environment, only torch, numpy, tqdm, safetensors, scikit-learn and pytest
GPU_OUT ?= bench.json

gpu:
	$(PYTHON) -m bench.gpu --out $(GPU_OUT)

test-lm-eval: .venv/installed-lm-eval
	.venv/bin/python -m pytest tests/test_lm_eval_adapter.py -rs

lint: .venv/installed-dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	.venv/bin/pip install -q --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/installed-lm-eval: requirements-lm-eval.txt .venv/installed-dev
	.venv/bin/pip install -q --disable-pip-version-check -r requirements-lm-eval.txt
	touch $@
