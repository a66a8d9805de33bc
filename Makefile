# opcomms.h: make, make test, make help
CC ?= cc
CFLAGS ?= -O2
BUILD := build

all: $(BUILD)/libopcomms.a examples ## static library and examples

examples: $(BUILD)/hello $(BUILD)/chat

$(BUILD)/%: examples/%.c opcomms.h | deps
	@mkdir -p $(BUILD)
	$(CC) $(CFLAGS) $< -I. -lbearssl -lpthread -o $@

$(BUILD)/libopcomms.a: opcomms.h | deps
	@mkdir -p $(BUILD)
	$(CC) $(CFLAGS) -x c -DOPCOMMS_IMPLEMENTATION -c opcomms.h -o $(BUILD)/opcomms.o
	rm -f $@
	ar rcs $@ $(BUILD)/opcomms.o

deps: ## installs what is missing, by package name
	@sh tests/deps.sh libbearssl-dev:/usr/include/bearssl.h

test: deps ## all tests
	@sh tests/run.sh

demo: examples ## two operators exchange messages, a third is turned away
	@sh tests/demo.sh

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

clean:
	rm -rf $(BUILD)

.PHONY: all examples demo deps test help clean
