/* For tests of tables against a model: dice that repeat themselves, and memory that ends on demand.
   Included behind opcomms.h and test.h. */
#ifndef OPCOMMS_TEST_MODEL_H
#define OPCOMMS_TEST_MODEL_H

static opc__mem mem;
static long allocs_left; /* -1: as many as wanted */
static uint64_t state = 1;

static uint32_t rnd(uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % n;
}

static void *take(void *user, size_t bytes) {
    (void)user;
    if (allocs_left == 0) return NULL;
    if (allocs_left > 0) allocs_left--;
    return malloc(bytes);
}

static void give(void *user, void *p, size_t bytes) {
    (void)user;
    (void)bytes;
    free(p);
}

static void mem_begin(void) {
    memset(&mem, 0, sizeof mem);
    mem.alloc = take;
    mem.release = give;
    allocs_left = -1;
}

#endif
