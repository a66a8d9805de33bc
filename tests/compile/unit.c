/* One unit of a program, C or C++. UNIT names its function; with UNIT_IMPLEMENTS it holds the
   implementation, else it only uses it. The header is included twice, as happens in real units. */
#if defined(UNIT_IMPLEMENTS)
#define OPCOMMS_IMPLEMENTATION
#endif
#include "opcomms.h"
#include "opcomms.h"

#include "units.h"

int UNIT(void) {
    opcomms_allow_list *list = NULL;
    opcomms_peer *peer = NULL;
    opcomms_config cfg;
    opcomms_error err;
    int ok;
    opcomms_config_init(&cfg);
    ok = cfg.size == sizeof cfg;
    ok = ok && opcomms_new(&cfg, &peer, &err) == OPCOMMS_E_INVAL && peer == NULL;
    ok = ok && opcomms_allow_list_new(NULL, &list) == OPCOMMS_OK;
    ok = ok && opcomms_allow_list_count(list) == 0;
    opcomms_allow_list_release(list);
    return !ok;
}
