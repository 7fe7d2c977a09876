# `make demo` and `make test` set up the environment they need; `make lint` checks format and style.
PYTHON ?= python3

.PHONY: demo test test-slow lint

demo: .venv/installed
	.venv/bin/python train.py --desc demo --model_dir demo/model --data_dir demo/data --lr 2e-4 --n_batch 2 --n_iter 3 --submit --analysis

test: .venv/installed-dev
	.venv/bin/python -m pytest

test-slow: .venv/installed-dev
	.venv/bin/python -m pytest -m slow

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
