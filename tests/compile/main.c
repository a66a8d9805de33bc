/* C or C++: a program of two units, both of which work. */
#include "opcomms.h"
#include "units.h"

int main(void) { return unit_a() + unit_b(); }
