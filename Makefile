# `make` alone lists the targets. Readers need `make book`; those who change something `make test`.

PYTHON ?= python3
BOOK_ENV := .venv-book
FULL_ENV := .venv
COURSE_ENV := .venv-course
COURSE := _build/course/gradebook.db
PAGE := _build/html/book/index.html
PORT ?= 8000

.DEFAULT_GOAL := help
.PHONY: help book test serve lab run study benchmark pdf gpu assignments grade clean check-python \
  check-submissions

help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

book: $(BOOK_ENV)/.stamp ## build the site from the stored outputs and open it
	@$(BOOK_ENV)/bin/jupyter-book build . -W --keep-going -n --quiet > /dev/null
	@$(BOOK_ENV)/bin/python book/_tools/open_page.py $(PAGE)

test: $(FULL_ENV)/.stamp $(COURSE_ENV)/.stamp ## prove it: lint, code, chapters, kernels, the site in a browser
	@$(FULL_ENV)/bin/python book/_tools/run_tests.py

serve: book ## serve the built site on this machine only (PORT=8000)
	$(BOOK_ENV)/bin/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

lab: $(FULL_ENV)/.stamp ## open JupyterLab on the chapters
	$(FULL_ENV)/bin/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/chapters

run: $(FULL_ENV)/.stamp ## run the chapters that changed and store their outputs
	$(FULL_ENV)/bin/python book/_tools/execute.py $(ARGS)

study: $(if $(CHAPTER),$(FULL_ENV)/.stamp) ## run the long experiments of a chapter (CHAPTER=1-foundations/soft-lookup)
	@test -n "$(CHAPTER)" || { echo "Say which chapter: make study CHAPTER=1-foundations/soft-lookup"; exit 2; }
	$(FULL_ENV)/bin/python book/_tools/study.py $(CHAPTER) $(ARGS)

benchmark: $(FULL_ENV)/.stamp ## measure what the book promises of itself: speed, memory, size
	@$(FULL_ENV)/bin/python book/_tools/benchmark.py

pdf: $(FULL_ENV)/.stamp ## write the book as one PDF (needs Chromium)
	$(FULL_ENV)/bin/python book/_tools/pdf.py

gpu: ## test and time the kernels on a CUDA machine, with the python that is there
	$(PYTHON) kernels/gpu.py $(ARGS)

assignments: $(COURSE) ## make the notebooks for students, without solutions and hidden tests
	@echo "The notebooks for students are in _build/assignments/"

grade: check-submissions $(FULL_ENV)/.stamp $(COURSE) ## grade a folder of submissions (SUBMISSIONS=folder, also OUTPUT, JOBS)
	@$(COURSE_ENV)/bin/python book/_tools/course/grade.py "$(SUBMISSIONS)" $(if $(OUTPUT),--output "$(OUTPUT)") \
	  $(if $(JOBS),--jobs "$(JOBS)") $(if $(filter none,$(ISOLATION)),--without-isolation) $(ARGS)

clean: ## remove what was built, keep the environments and what was graded
	@test ! -d _build || find _build -mindepth 1 -maxdepth 1 ! -name graded -exec rm -rf {} +

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	  echo "This book needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1)."; \
	  echo "Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }

ASSIGNMENTS = $(wildcard chapters/*/assignments/*.ipynb)

RELEASE = book/_tools/course/release.py book/_tools/course/leaks.py book/_tools/setup_cell.py

$(COURSE): $(ASSIGNMENTS) $(RELEASE) | $(COURSE_ENV)/.stamp
	@$(COURSE_ENV)/bin/python book/_tools/course/release.py

check-submissions:
	@test -n "$(SUBMISSIONS)" || { echo "Say which folder: make grade SUBMISSIONS=folder"; exit 2; }

PIP_INSTALL = -m pip install -qq --disable-pip-version-check

$(BOOK_ENV)/.stamp: requirements-book.txt | check-python
	@echo "Making $(BOOK_ENV): the tools that build the site, no torch (once, under a minute)"
	@$(PYTHON) -m venv $(BOOK_ENV)
	@$(BOOK_ENV)/bin/python $(PIP_INSTALL) -r requirements-book.txt
	@touch $@

$(FULL_ENV)/.stamp: requirements.txt pyproject.toml | check-python
	@echo "Making $(FULL_ENV): everything pinned in requirements.txt, with torch (once, some minutes)"
	@$(PYTHON) -m venv $(FULL_ENV)
	@$(FULL_ENV)/bin/python $(PIP_INSTALL) -r requirements.txt
	@$(FULL_ENV)/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(COURSE_ENV)/.stamp: requirements-course.txt | check-python
	@echo "Making $(COURSE_ENV): nbgrader, for assignments and grading (once, under a minute)"
	@$(PYTHON) -m venv $(COURSE_ENV)
	@$(COURSE_ENV)/bin/python $(PIP_INSTALL) -r requirements-course.txt
	@touch $@
