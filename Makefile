# opcomms.h: make, make demo, make test, make help
CC ?= cc
CFLAGS ?= -O2
BUILD := build
T ?= 30

LIBRARY_NEEDS := libbearssl-dev:/usr/include/bearssl.h
TEST_NEEDS := $(LIBRARY_NEEDS) g++:g++ clang:clang musl-tools:musl-gcc openssl:openssl

all: $(BUILD)/libopcomms.a examples ## static library and examples

EXAMPLES := $(patsubst examples/%.c,$(BUILD)/%,$(wildcard examples/*.c))

examples: $(EXAMPLES) ## the examples and the tool, in build/

$(BUILD)/%: examples/%.c opcomms.h | deps
	@mkdir -p $(BUILD)
	$(CC) $(CFLAGS) $< -I. -lbearssl -lpthread -o $@

$(BUILD)/libopcomms.a: opcomms.h | deps
	@mkdir -p $(BUILD)
	$(CC) $(CFLAGS) -x c -DOPCOMMS_IMPLEMENTATION -c opcomms.h -o $(BUILD)/opcomms.o
	rm -f $@
	ar rcs $@ $(BUILD)/opcomms.o

deps:
	@sh tests/deps.sh $(LIBRARY_NEEDS)

test-deps:
	@sh tests/deps.sh $(TEST_NEEDS)

demo: examples ## two operators exchange messages, a third is turned away
	@sh tests/demo.sh

test: test-deps ## all tests, under address and undefined-behaviour sanitizers
	@sh tests/run.sh

check-asan: test ## the same

check-tsan: test-deps ## the test programs under the thread sanitizer
	@SAN=thread PARTS='test_*' sh tests/run.sh

fuzz: test-deps ## every fuzz target for T seconds (default 30)
	@sh tests/fuzz/fuzz.sh $(T)

interop: test-deps ## the matrix against an independent Rust peer, both directions
	@sh tests/interop/interop.sh

delivery: test-deps ## throughput of the outbox beside libzmq and the raw limits; a chart
	@sh tests/bench/delivery.sh

bench: test-deps ## speed, memory and size, each next to its raw limit
	@sh tests/bench/run.sh

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

clean: ## removes what was built
	rm -rf $(BUILD)

.PHONY: all examples deps test-deps demo test check-asan check-tsan fuzz interop delivery bench help clean
