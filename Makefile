# make demo        mount a simulated machine and run a session on it
# make install     install barfs for all users, as root; make uninstall removes it (PREFIX, DESTDIR)
# make deb         build the package for Debian 13, build/barfs_*.deb (ARCH=arm64 cross-compiles it)
# make test        lint, types, and all tests; builds the test kernels once (half an hour)
# make test-unit, test-vm, test-package, test-arm64   one tier of them, or what runs on arm64
# make test-deb    build the package, run all of tests/mounted on it in a fresh Debian 13, and its
#                  service in a guest (twenty minutes)
# make test-arm64-64k  what runs in a guest for arm64, on a kernel with pages of 64K
# make soak        all that users may do at once, for ten minutes; prints what the daemons held
# make bench       measure how fast it is (six minutes; ARGS=--quick for half a minute)
# make performance the same, and write docs/performance.svg and the tables of docs/performance.md
# make generated   what is committed but made: docs/session.svg, docs/rooms.svg, the tables of
#                  docs/tools.md, contrib/completion, the maps of registers that come with barfs
# make clean       remove what the others have made in this directory

SHELL := /bin/bash
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
SCRIPTS := tools/setup tools/launcher tools/install tools/article tools/chroot tools/deb \
	tests/vm/build-kernel tests/vm/make-root tests/vm/guest_init .ci/run

# What the virtual environment was made of.
INPUTS := pyproject.toml tools/setup tools/launcher $(wildcard barfs/access/*.[ch])


PYTEST = $(SUDO) env BARFS_REQUIRE=1 PYTHONDONTWRITEBYTECODE=1 \
	$(if $(BARFS_VM_MACHINES),BARFS_VM_MACHINES=$(BARFS_VM_MACHINES)) \
	$(if $(BARFS_PACKAGE),BARFS_PACKAGE=$(BARFS_PACKAGE)) \
	.venv/bin/python -m pytest -p no:cacheprovider --durations=10

# What takes long of the mounted tier, and whose outcome does not depend on times.
BESIDE := $(addprefix tests/mounted/,test_bench.py test_install.py test_load.py test_model.py)

export PREFIX DESTDIR

.PHONY: demo install uninstall deb test types test-unit test-package test-beside test-vm \
	test-arm64 test-deb test-arm64-64k bytecode soak bench performance generated clean

demo: .venv/demo
	tools/article

install:
	tools/install

uninstall:
	tools/install --remove

deb:
	$(SUDO) tools/deb $(ARCH)

test: .venv/test
	shellcheck $(SCRIPTS)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	$(MAKE) --no-print-directory -j 2 test-vm types test-unit test-package test-beside
	$(PYTEST) tests/mounted $(addprefix --ignore=,$(BESIDE))

# What runs beside a guest, which takes longest: one of these after the other. What they print is
# shown at their end.
types: .venv/test
	.venv/bin/mypy

test-unit: TESTS := tests/unit
test-package: TESTS := tests/package
test-beside: TESTS := $(BESIDE)
test-unit test-package test-beside: bytecode
	mkdir -p build
	$(PYTEST) $(TESTS) >build/$@.log 2>&1 || { cat build/$@.log; exit 1; }
	tail -n 14 build/$@.log

test-vm: bytecode
	$(PYTEST) tests/vm

test-arm64: bytecode
	$(PYTEST) -m arm64 tests/vm

# Else each start of barfs in a guest would compile it anew. The tests work without.
bytecode: .venv/test
	-.venv/bin/python -m compileall -q barfs

test-deb: export BARFS_PACKAGE := make
test-deb: .venv/test
	$(PYTEST) tests/package

test-arm64-64k: export BARFS_VM_MACHINES := arm64-64k
test-arm64-64k: bytecode
	$(PYTEST) -m arm64 tests/vm

soak: .venv/test
	$(SUDO) env BARFS_REQUIRE=1 BARFS_SOAK_SECONDS=600 PYTHONDONTWRITEBYTECODE=1 \
		.venv/bin/python -m pytest -p no:cacheprovider tests/mounted/test_soak.py

bench: .venv/bench
	$(SUDO) .venv/bin/python -m bench $(ARGS)

performance: bench
	.venv/bin/python bench/plot

generated: .venv/test
	.venv/bin/python tools/completion
	.venv/bin/python tools/rooms
	.venv/bin/python tools/registers
	$(SUDO) .venv/bin/python tools/screenshot
	$(SUDO) .venv/bin/python -m survey --write

.venv/demo .venv/test .venv/bench: .venv/%: $(INPUTS)
	tools/setup $*
	touch $@

clean:
	rm -rf .venv build dist barfs.egg-info barfs/*/*.so .mypy_cache .ruff_cache .pytest_cache
	rm -rf .pybuild debian/.debhelper debian/barfs debian/files debian/*.substvars \
		debian/*.debhelper debian/debhelper-build-stamp
	find . -name __pycache__ -prune -exec rm -rf {} +
