/* A test is a claim: TEST(log_append_survives_short_writes) { CHECK(...); }
   Every CHECK that fails is printed; a test with a failed CHECK counts as failed. */
#ifndef OPCOMMS_TEST_H
#define OPCOMMS_TEST_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef TEST_DATA
#define TEST_DATA "tests/data"
#endif

static int test_passed;
static int test_failed;
static int test_bad; /* failed checks of the running test */

#define TEST(name) static void name(void)

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            test_bad++;                                                               \
            printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);            \
        }                                                                             \
    } while (0)

#define CHECK_EQ(a, b)                                                                \
    do {                                                                              \
        long long test_a = (long long)(a), test_b = (long long)(b);                   \
        if (test_a != test_b) {                                                       \
            test_bad++;                                                               \
            printf("%s:%d: failed: %s == %s (%lld, %lld)\n", __FILE__, __LINE__, #a, #b, \
                   test_a, test_b);                                                   \
        }                                                                             \
    } while (0)

#define CHECK_STR(a, b)                                                               \
    do {                                                                              \
        const char *test_a = (a), *test_b = (b);                                      \
        if (strcmp(test_a, test_b) != 0) {                                            \
            test_bad++;                                                               \
            printf("%s:%d: failed: %s is \"%s\", not \"%s\"\n", __FILE__, __LINE__, #a, \
                   test_a, test_b);                                                   \
        }                                                                             \
    } while (0)

#define RUN(name)                                                                     \
    do {                                                                              \
        test_bad = 0;                                                                 \
        name();                                                                       \
        if (test_bad) {                                                               \
            test_failed++;                                                            \
            printf("FAILED %s\n", #name);                                             \
        } else {                                                                      \
            test_passed++;                                                            \
        }                                                                             \
        fflush(stdout);                                                               \
    } while (0)

/* Last line of every test program; the runner adds these lines up. */
static inline int test_end(void) {
    printf("%d passed, %d failed\n", test_passed, test_failed);
    return test_failed != 0;
}

#endif
