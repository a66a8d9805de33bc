/* What the programs of this part have in common. */
#ifndef OPCOMMS_TESTS_UNITS_H
#define OPCOMMS_TESTS_UNITS_H

#ifdef __cplusplus
extern "C" {
#endif
int unit_a(void); /* 0: the functions work from this unit */
int unit_b(void);
#ifdef __cplusplus
}
#endif

#endif
