# make install   the Debian packages that are missing (needs root), and the Python environment in .venv
# make install-libvirt   what servers with libvirt need besides (half a minute); without it their tests are skipped
# make install-browser   Debian's Chromium, for the tests of the web page; without it they are skipped
# make demo   the main job, end to end, on real parts; writes build/demo.json
# make compare   live migration beside other systems, under traffic; writes build/compare.json (half an hour or
#             more; minutes with SYSTEMS=retinue,learning-switch RUNS=2 PPS=500; also SIZES=64,1400 and TCP=0;
#             MECHANISMS=1: what each of the five mechanisms does alone; DUAL=1: two NICs, IPv4 and IPv6)
# make bench    how the controller bears up to 100,000 VMs on 1,000 servers, which are fakes; writes build/bench.json
#             (up to an hour; SHORT=1: two small sizes, under two minutes; ARGS="--help" for the rest)
# make check  ruff, strict types, import contracts, the tests that requirements name (under a minute)
# make unit   unit and property tests (a minute or two)
# make test   everything: unit, property and lab tests (needs root)
# make test-long  what takes long and says no more on most days: many migrations of a VM that writes, more systems;
#             and the web page in a browser, which `make test` tries only where `make install-browser` was run
# make test-packages  the Debian packages on machines that systemd has booted, in containers: set up, migrations and
#             an upgrade under traffic, purged; virsh migrate between servers with libvirt; the Ansible role, where
#             Ansible is (twenty minutes; the first time a Debian 12 is made, from Debian's mirror)
# make mutate  whether the tests notice deliberate mistakes in what judges (minutes; see tests/mutation)
# make prove    what the pipeline promises, proved of all frames on small networks (a few minutes; see docs/proof.md)
# make fuzz     a million damaged inputs for each parser of what comes from outside (a quarter of an hour)
# make format   what ruff can mend by itself
# make deb      Debian packages of command, controller and agent, in build/deb (a minute or two; needs PyPI)
# make man      the manual pages, in build/man
# make docs     the docs as a site, in build/docs (its first run needs PyPI)
# make clean  the Python environment and all that was built, the cache of VM images included
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export RETINUE_CACHE ?= $(CURDIR)/build/cache
# A laboratory starts a dozen of our programs: each would be compiled anew, a second or more of a processor.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo chaos compare bench test test-long unit check mutate prove fuzz install-prove install-prometheus format install install-libvirt system clean man docs deb install-browser install-openapi install-docs install-machines test-packages
help:
	@sed -n 's/^# //p' Makefile

system:
	@sh deploy/install-system.sh

$(VENV)/.installed: requirements.lock requirements-nodeps.txt pyproject.toml src/retinue_lab/pyproject.toml
	@echo "Making the Python environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements-nodeps.txt
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e . -e src/retinue_lab
	@touch $@

install: system $(VENV)/.installed

install-libvirt: $(VENV)/.installed-libvirt

$(VENV)/.installed-libvirt: $(VENV)/.installed deploy/apt-libvirt.txt requirements-libvirt.txt
	@sh deploy/install-libvirt.sh $(BIN)/pip
	@touch $@

# Servers need none of it, and without it its tests are skipped.
install-prove: $(VENV)/.installed-prove

$(VENV)/.installed-prove: $(VENV)/.installed requirements-prove.txt
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --require-hashes -r requirements-prove.txt
	@touch $@

install-openapi: $(VENV)/.installed-openapi

$(VENV)/.installed-openapi: $(VENV)/.installed requirements-openapi.txt
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --require-hashes -r requirements-openapi.txt
	@touch $@

install-docs: $(VENV)/.installed-docs

$(VENV)/.installed-docs: $(VENV)/.installed requirements-docs.txt
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --require-hashes -r requirements-docs.txt
	@touch $@

# What judges metrics, alert rules and dashboard; without it those tests are skipped.
install-prometheus:
	@sh deploy/install-system.sh deploy/apt-prometheus.txt

install-browser: $(VENV)/.installed-browser

$(VENV)/.installed-browser: $(VENV)/.installed deploy/apt-browser.txt requirements-browser.txt
	@sh deploy/install-system.sh deploy/apt-browser.txt
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --require-hashes -r requirements-browser.txt
	@touch $@

demo: install
	@$(BIN)/retinue lab demo --output build/demo.json

compare: install
	@sh deploy/install-system.sh deploy/apt-compare.txt || echo "Going on without: see what is not available" >&2
	@$(MAKE) --no-print-directory -s install-libvirt || echo "Going on without libvirt" >&2
	@nice -n -15 $(BIN)/retinue lab compare --output build/compare.json $(if $(SYSTEMS),--systems "$(SYSTEMS)") $(if $(MECHANISMS),--mechanisms) \
		$(if $(RUNS),--runs $(RUNS)) $(if $(PPS),--pps "$(PPS)") $(if $(SIZES),--sizes "$(SIZES)") \
		$(if $(TCP),--tcp $(TCP)) $(if $(WRITES),--writes "$(WRITES)") $(if $(DUAL),--dual)

bench: $(VENV)/.installed
	@PYTHONPATH=tests $(BIN)/python -m bench.scale $(if $(SHORT),--short) $(ARGS)

test: install
	@$(MAKE) --no-print-directory install-libvirt || echo "Going on without libvirt: its tests are skipped" >&2
	@$(MAKE) --no-print-directory install-prove || echo "Going on without a solver: its tests are skipped" >&2
	@$(MAKE) --no-print-directory install-openapi || echo "Going on without a judge of OpenAPI: its tests are skipped" >&2
	@$(MAKE) --no-print-directory install-prometheus || echo "Going on without promtool: its tests are skipped" >&2
	@$(BIN)/pytest -m "not long" -n 3 --dist loadfile --no-loadscope-reorder --durations 40

test-long: install
	@$(MAKE) --no-print-directory install-browser || echo "Going on without a browser: its tests are skipped" >&2
	@$(BIN)/pytest -m "long or browser" -s
	@RETINUE_EXAMPLES=4 $(BIN)/pytest -n 2 --dist loadfile tests/property

# What makes and boots machines with a Debian 12; without it those tests are skipped.
install-machines:
	@sh deploy/install-system.sh deploy/apt-machines.txt

test-packages: install install-machines
	@$(BIN)/pytest -s tests/lab/test_packages_booted.py tests/lab/test_virsh_booted.py tests/lab/test_ansible_booted.py

chaos: install
	@PYTHONPATH=tests $(BIN)/python -m chaos $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

unit: $(VENV)/.installed
	@$(MAKE) --no-print-directory install-openapi || echo "Going on without a judge of OpenAPI: its tests are skipped" >&2
	@$(MAKE) --no-print-directory install-prove || echo "Going on without a solver: its tests are skipped" >&2
	@$(BIN)/pytest -n 2 --dist loadfile tests/unit tests/property

check: $(VENV)/.installed
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy --num-workers 2 || { test $$? -eq 2 && echo "Its workers did not start: once more, without" >&2 && $(BIN)/mypy; }
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python tests/tools/check_requirements.py

mutate: $(VENV)/.installed
	@PYTHONPATH=tests $(BIN)/python -m mutation $(ARGS)

prove: $(VENV)/.installed-prove
	@PYTHONPATH=tests $(BIN)/python -m prove $(ARGS)

fuzz: $(VENV)/.installed
	@PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

format: $(VENV)/.installed
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

man: $(VENV)/.installed
	@$(BIN)/python -m retinue.cli.manual build/man
	@PYTHONPATH=tests $(BIN)/python -m docsite --man build/man
	@echo "The manual pages are in build/man: man -l build/man/retinue.1"

docs: $(VENV)/.installed-docs
	@PYTHONPATH=tests $(BIN)/python -m docsite build/docs-source
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # With -q it counts no warnings.
	@PYTHONPATH=tests $(BIN)/python -m docsite --look build/docs
	@echo "The site is in build/docs: $(BIN)/python -m http.server -b 127.0.0.1 -d build/docs 8000"

deb: $(VENV)/.installed
	@sh deploy/deb/build.sh $(BIN)

clean:
	rm -rf build $(VENV)
