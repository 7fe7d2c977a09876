# `make demo` and `make test` set up the environment they need; `make lint` checks format and style; `make test-lm-eval`
# installs lm-evaluation-harness too.
PYTHON ?= python3

.PHONY: demo paper glue test test-slow gpu test-lm-eval lint always

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

# `make glue GLUE_DIR=...` trains and predicts the nine tasks of GLUE, with the paper's settings, and packs the eleven
# files to hand in. Repeat it after a stop: finished tasks are left as they are, the others go on. Flags that change
# results need another GLUE_OUT (folder for log/, save/, submission/), as here, where all is tried in a few minutes:
#   make glue GLUE_DIR=... GLUE_OUT=/tmp/dry GLUE_FLAGS="--max_examples 20 --n_batch 2 --accumulate 1 --n_iter 1"
MODEL_DIR ?= model
GLUE_OUT ?= .
GLUE_FLAGS ?=
HAND_IN = $(GLUE_OUT)/submission
GLUE_FILES = $(addprefix $(HAND_IN)/,CoLA.tsv SST-2.tsv MRPC.tsv STS-B.tsv QQP.tsv AX.tsv QNLI.tsv RTE.tsv WNLI.tsv)
MNLI_FILES = $(addprefix $(HAND_IN)/,MNLI-m.tsv MNLI-mm.tsv)

glue: $(GLUE_FILES)
	ls $(GLUE_FILES) $(MNLI_FILES) > /dev/null
	.venv/bin/python -m zipfile -c $(HAND_IN)/GLUE.zip $(GLUE_FILES) $(MNLI_FILES)

$(HAND_IN)/CoLA.tsv: DATASET = cola
$(HAND_IN)/SST-2.tsv: DATASET = sst2
$(HAND_IN)/MRPC.tsv: DATASET = mrpc
$(HAND_IN)/STS-B.tsv: DATASET = stsb
$(HAND_IN)/QQP.tsv: DATASET = qqp
$(HAND_IN)/AX.tsv: DATASET = mnli# writes MNLI-m.tsv, MNLI-mm.tsv and, last, AX.tsv
$(HAND_IN)/QNLI.tsv: DATASET = qnli
$(HAND_IN)/RTE.tsv: DATASET = rte
$(HAND_IN)/WNLI.tsv: DATASET = wnli
$(GLUE_FILES): $(GLUE_OUT)/log/glue_flags
	.venv/bin/python train.py --dataset $(DATASET) --data_dir "$(GLUE_DIR)" --model_dir "$(MODEL_DIR)" \
	  --log_dir "$(GLUE_OUT)/log" --save_dir "$(GLUE_OUT)/save" --submission_dir "$(HAND_IN)" \
	  --n_batch 8 --accumulate 4 --submit --analysis --resume $(GLUE_FLAGS)

# changes when the flags do
$(GLUE_OUT)/log/glue_flags: always | .venv/installed
	@test -e "$(GLUE_DIR)/diagnostic/diagnostic.tsv" || \
	  { echo "GLUE_DIR=$(GLUE_DIR) has no diagnostic/diagnostic.tsv: name the folder with CoLA, SST-2, ..., diagnostic"; exit 2; }
	@mkdir -p $(@D)
	@echo '$(GLUE_DIR) $(MODEL_DIR) $(GLUE_FLAGS)' | cmp -s - $@ || echo '$(GLUE_DIR) $(MODEL_DIR) $(GLUE_FLAGS)' > $@

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
