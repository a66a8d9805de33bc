/* Declarations first, a system header, then the implementation: the order the manual advises
   against. With the compiler's default standard it works all the same, and nothing is lost. */
#include "opcomms.h"

#include <stdio.h>
#include <unistd.h>

#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"

#if !defined(OPCOMMS_NO_POSIX) && !defined(OPCOMMS_NO_LINUX)
/* Two peers of one process exclude each other from a log on Linux: the lock belongs to the file. */
static int second_lock_is_refused(const char *name) {
    const opcomms_platform *plat = opc__plat_default();
    intptr_t dir, a, b;
    int os_code = 0, refused;
    if (plat->dir_open(plat->user, "build", &dir, &os_code) != OPCOMMS_OK) return 0;
    if (plat->file_open(plat->user, dir, name, OPCOMMS_FILE_WRITE | OPCOMMS_FILE_CREATE, &a,
                        &os_code) != OPCOMMS_OK) {
        return 0;
    }
    if (plat->file_open(plat->user, dir, name, OPCOMMS_FILE_WRITE, &b, &os_code) != OPCOMMS_OK) {
        return 0;
    }
    refused = plat->file_lock(plat->user, a, &os_code) == OPCOMMS_OK &&
              plat->file_lock(plat->user, b, &os_code) == OPCOMMS_E_IN_USE;
    plat->file_close(plat->user, b);
    plat->file_close(plat->user, a);
    (void)plat->file_remove(plat->user, dir, name, &os_code); /* only tidying up */
    plat->dir_close(plat->user, dir);
    return refused;
}
#endif

int main(void) {
#if defined(__linux__) && !defined(OPCOMMS_NO_POSIX) && !defined(OPCOMMS_NO_LINUX)
    char name[64];
    (void)snprintf(name, sizeof name, "late-%ld.lock", (long)getpid());
    if (!second_lock_is_refused(name)) {
        printf("two handles of one process hold the same lock\n");
        return 1;
    }
#endif
    return opcomms_version() == NULL;
}
