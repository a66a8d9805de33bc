/* The operators' tool: keys, lists, sending, receiving, serving, the outbox, and what a log holds.
   cc opcomms.c -I.. -lbearssl -lpthread -o opcomms

   usage: opcomms COMMAND [OPTION]... [ARGUMENT]...
   `opcomms --help` lists the commands and exit codes, `opcomms COMMAND --help` explains one. */
#define OPCOMMS_IMPLEMENTATION
#include "opcomms.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <termios.h>

#define BYTES_MAX ((size_t)OPCOMMS_MAX_FRAME)

/* ---- exit codes ------------------------------------------------------------------------------ */

enum {
    END_OK = 0, END_FAILED = 1, END_USAGE = 2, END_UNREACHABLE = 3, END_NOT_ALLOWED = 4,
    END_ROUTE = 5, END_IDENTITY = 6, END_EMPTY = 7, END_UNKNOWN = 8, END_LOG = 9,
    END_IN_USE = 10, END_INPUT = 11,
    END_LIMIT = 12, END_NOT_FOUND = 13
};

static const char exit_help[] =
    "Exit codes:\n"
    "  0  done; a check says yes          7  no message is waiting\n"
    "  1  failed otherwise                8  sent, but whether it arrived is unknown\n"
    "  2  wrong use                       9  a log is damaged, or was set back\n"
    "  3  the peer cannot be reached     10  in use, or already there\n"
    "  4  not on an allow list           11  a key, list or other input is not acceptable\n"
    "  5  a routing table refuses        12  a limit, a rate or a full queue\n"
    "  6  another key answers there      13  no such file, entry or message\n";

static int exit_of(opcomms_err rc) {
    static const struct { opcomms_err rc; int code; } ends[] = {
        {OPCOMMS_OK, END_OK}, {OPCOMMS_E_CONNECT, END_UNREACHABLE},
        {OPCOMMS_E_TLS, END_UNREACHABLE}, {OPCOMMS_E_TIMEOUT, END_UNREACHABLE},
        {OPCOMMS_E_CLOSED, END_UNREACHABLE}, {OPCOMMS_E_NOT_ALLOWED, END_NOT_ALLOWED},
        {OPCOMMS_E_ROUTE, END_ROUTE}, {OPCOMMS_E_IDENTITY, END_IDENTITY},
        {OPCOMMS_E_EMPTY, END_EMPTY}, {OPCOMMS_E_UNKNOWN_OUTCOME, END_UNKNOWN},
        {OPCOMMS_E_LOG_DAMAGED, END_LOG}, {OPCOMMS_E_LOG_KEY, END_LOG},
        {OPCOMMS_E_LOG_VERSION, END_LOG}, {OPCOMMS_E_POISONED, END_LOG},
        {OPCOMMS_E_ROLLBACK, END_LOG},
        {OPCOMMS_E_IN_USE, END_IN_USE}, {OPCOMMS_E_INVAL, END_INPUT},
        {OPCOMMS_E_ADDRESS, END_INPUT}, {OPCOMMS_E_SYNTAX, END_INPUT},
        {OPCOMMS_E_NO_PEM, END_INPUT}, {OPCOMMS_E_ENCRYPTED, END_INPUT},
        {OPCOMMS_E_PASSWORD, END_INPUT}, {OPCOMMS_E_KEY_TYPE, END_INPUT},
        {OPCOMMS_E_KEY_DAMAGED, END_INPUT}, {OPCOMMS_E_CERT, END_INPUT},
        {OPCOMMS_E_LIMIT, END_LIMIT}, {OPCOMMS_E_FULL, END_LIMIT},
        {OPCOMMS_E_NOT_FOUND, END_NOT_FOUND}};
    size_t i;
    for (i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        if (ends[i].rc == rc) return ends[i].code;
    }
    return END_FAILED;
}

static const char *name_of(opcomms_err rc) {
    switch (rc) {
#define NAME(name, value, severity, text) \
    case name: return #name;
        OPCOMMS_ERRORS(NAME)
#undef NAME
    case OPCOMMS_E_LAST_: break;
    }
    return "?";
}

/* ---- options --------------------------------------------------------------------------------- */

static struct {
    int help, json, text, keep, raw, lines, all, all_ids, payload, unread, ca_cert, password,
        native, none;
    const char *key, *listen, *allow, *routes, *log, *to, *server, *from, *ca, *out, *type;
    const char *durability, *protocol, *ip, *file, *config, *context;
    uint32_t id, from_id, timeout, count, max, wait, mailboxes, attempts, expiry, within;
    int max_set;
} o;

typedef enum opt_kind { FLAG, WORD, NUMBER } opt_kind;

static const struct opt {
    const char *name;
    opt_kind kind;
    void *where;
    uint32_t most;
    const char *help;
} opts[] = {
    {"help", FLAG, &o.help, 0, "explains the command"},
    {"json", FLAG, &o.json, 0, "one JSON object a line instead of text for people"},
    {"key", WORD, &o.key, 0, "FILE   our private key, PEM"},
    {"config", WORD, &o.config, 0, "FILE   settings, YAML; options come before them"},
    {"ca", WORD, &o.ca, 0, "FILE   private key of a CA of our own; default: the well-known one"},
    {"log", WORD, &o.log, 0, "FILE   our log; default opcomms-<16 digits of our hash>.log"},
    {"allow", WORD, &o.allow, 0, "FILE   allow list, YAML"},
    {"routes", WORD, &o.routes, 0, "FILE   routing table, YAML"},
    {"listen", WORD, &o.listen, 0, "IP:PORT   default 0.0.0.0:0, a free port"},
    {"to", WORD, &o.to, 0, "HASH[:ID]@IP:PORT   whom"},
    {"context", WORD, &o.context, 0, "TEXT   kept with it, at most 256 bytes"},
    {"attempts", NUMBER, &o.attempts, 65535, "N   to make; then it is a dead letter"},
    {"expiry", NUMBER, &o.expiry, 0x7fffffff, "SECONDS   then it is a dead letter"},
    {"within", NUMBER, &o.within, 86400, "SECONDS   to give up then; default 0: never"},
    {"native-only", FLAG, &o.native, 0, "never to a peer of the Rust system's protocol"},
    {"server", WORD, &o.server, 0, "HASH@IP:PORT   the mailbox server"},
    {"from", WORD, &o.from, 0, "HASH@IP:PORT   the server to empty"},
    {"id", NUMBER, &o.id, 255, "N   our mailbox, 0 to 255; default 0"},
    {"from-id", NUMBER, &o.from_id, 255, "N   our mailbox that is named as sender; default 0"},
    {"timeout", NUMBER, &o.timeout, 3600000, "MS   for each request; default 10000"},
    {"count", NUMBER, &o.count, 1000000000, "N   how many"},
    {"max", NUMBER, &o.max, 1000000000, "N   at most so many messages, 0: all; default 1"},
    {"wait", NUMBER, &o.wait, 86400, "SECONDS   to wait for the first one; default 0"},
    {"mailboxes", NUMBER, &o.mailboxes, 0x80000, "N   keep mail for so many other identities"},
    {"durability", WORD, &o.durability, 0, "always, interval or never"},
    {"protocol", WORD, &o.protocol, 0, "v0.5.0 or newer: the form of our answers"},
    {"type", WORD, &o.type, 0, "p256 (default), rsa2048, rsa3072 or rsa4096"},
    {"out", WORD, &o.out, 0, "FILE   instead of standard output; must not exist"},
    {"ip", WORD, &o.ip, 0, "IP   the one address it may come from; of a check: it comes from"},
    {"file", WORD, &o.file, 0, "FILE   its content is the message; - is standard input"},
    {"text", FLAG, &o.text, 0, "send UTF-8 text as such, not as bytes"},
    {"lines", FLAG, &o.lines, 0, "every line of standard input is a message"},
    {"keep", FLAG, &o.keep, 0, "do not acknowledge: the messages stay"},
    {"raw", FLAG, &o.raw, 0, "only the payloads, byte by byte"},
    {"all", FLAG, &o.all, 0, "the word allow_all: everybody, everything"},
    {"all-ids", FLAG, &o.all_ids, 0, "all 256 mailboxes"},
    {"payload", FLAG, &o.payload, 0, "with what is in the messages"},
    {"unread", FLAG, &o.unread, 0, "only what is not acknowledged"},
    {"password", FLAG, &o.password, 0, "the key is written under a password"},
    {"none", FLAG, &o.none, 0, "no password any more"},
    {"ca-cert", FLAG, &o.ca_cert, 0, "the CA's own certificate; no KEY"},
};

#define OPTS (sizeof opts / sizeof opts[0])

static const char *command = ""; /* for messages */

static int usage(const char *what, const char *arg) {
    fprintf(stderr, "opcomms%s%s: %s%s%s\nopcomms%s%s --help explains.\n", command[0] ? " " : "",
            command, what, arg ? ": " : "", arg ? arg : "", command[0] ? " " : "", command);
    return END_USAGE;
}

/* ---- output ---------------------------------------------------------------------------------- */

/* Length of the UTF-8 sequence at p, 0: none. *code is the character. */
static size_t utf8(const unsigned char *p, size_t n, uint32_t *code) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    size_t len = p[0] < 0x80 ? 1 : p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2, i;
    if ((p[0] >= 0x80 && p[0] < 0xc2) || p[0] > 0xf4 || len > n) return 0;
    *code = len == 1 ? p[0] : p[0] & (0x7fu >> len);
    for (i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) return 0;
        *code = *code << 6 | (p[i] & 0x3fu);
    }
    if (*code < least[len] || *code > 0x10ffff || (*code >= 0xd800 && *code < 0xe000)) return 0;
    return len;
}

static int is_utf8(const void *data, size_t len) {
    const unsigned char *p = (const unsigned char *)data;
    size_t i = 0, n;
    uint32_t code;
    for (; i < len; i += n) {
        n = utf8(p + i, len - i, &code);
        if (n == 0) return 0;
    }
    return 1;
}

/* For people: nothing that moves a terminal's cursor gets through. */
static void print_safe(FILE *to, const void *data, size_t len) {
    const unsigned char *p = (const unsigned char *)data;
    size_t i = 0;
    while (i < len) {
        uint32_t code = 0;
        size_t n = utf8(p + i, len - i, &code);
        int plain = n > 0 && code >= 0x20 && !(code >= 0x7f && code < 0xa0) && code != 0x2028 &&
                    code != 0x2029 && !(code >= 0x202a && code <= 0x202e) &&
                    !(code >= 0x2066 && code <= 0x2069);
        if (plain) {
            fwrite(p + i, 1, n, to);
            i += n;
        } else if (p[i] == '\n' || p[i] == '\t') {
            fprintf(to, p[i] == '\n' ? "\\n" : "\\t");
            i++;
        } else {
            fprintf(to, "\\x%02x", p[i]);
            i++;
        }
    }
}

static FILE *json_to;
static int json_more;

static void json_begin(FILE *to) {
    json_to = to;
    json_more = 0;
    fputc('{', to);
}
static void json_end(void) {
    fputs("}\n", json_to);
    fflush(json_to);
}
static void json_bytes(const void *data, size_t len) { /* UTF-8, in quotes */
    const unsigned char *p = (const unsigned char *)data;
    size_t i;
    fputc('"', json_to);
    for (i = 0; i < len; i++) {
        if (p[i] == '"' || p[i] == '\\') {
            fprintf(json_to, "\\%c", p[i]);
        } else if (p[i] < 0x20 || p[i] == 0x7f) {
            fprintf(json_to, "\\u%04x", p[i]);
        } else {
            fputc(p[i], json_to);
        }
    }
    fputc('"', json_to);
}
static void json_name(const char *name) {
    if (json_more) fputc(',', json_to);
    json_more = 1;
    json_bytes(name, strlen(name));
    fputc(':', json_to);
}
static void json_data(const char *name, const void *data, size_t len) {
    const unsigned char *p = (const unsigned char *)data;
    char other[64];
    size_t i;
    if (is_utf8(data, len)) {
        json_name(name);
        json_bytes(data, len);
        return;
    }
    snprintf(other, sizeof other, strcmp(name, "text") == 0 ? "hex" : "%s_hex", name);
    json_name(other);
    fputc('"', json_to);
    for (i = 0; i < len; i++) fprintf(json_to, "%02x", p[i]);
    fputc('"', json_to);
}
static void json_text(const char *name, const char *text) { json_data(name, text, strlen(text)); }
static void json_number(const char *name, uint64_t v) {
    json_name(name);
    fprintf(json_to, "%llu", (unsigned long long)v);
}
static void json_signed(const char *name, int64_t v) {
    json_name(name);
    fprintf(json_to, "%lld", (long long)v);
}
static void json_bool(const char *name, int v) {
    json_name(name);
    fputs(v ? "true" : "false", json_to);
}

/* A whole object: names with the kinds of their values, b int as true or false, s text, u uint64_t,
   d int, x bytes and their size_t. */
static void json(const char *spec, ...) {
    va_list a;
    va_start(a, spec);
    json_begin(stdout);
    while (*spec != 0) {
        char name[32];
        size_t n = strcspn(spec, ":");
        const void *data;
        memcpy(name, spec, n);
        name[n] = 0;
        switch (spec[n + 1]) {
        case 'b': json_bool(name, va_arg(a, int)); break;
        case 's': json_text(name, va_arg(a, const char *)); break;
        case 'u': json_number(name, va_arg(a, uint64_t)); break;
        case 'd': json_signed(name, va_arg(a, int)); break;
        default:
            data = va_arg(a, const void *);
            json_data(name, data, va_arg(a, size_t));
        }
        spec += n + 2;
        if (*spec == ' ') spec++;
    }
    va_end(a);
    json_end();
}

/* On a terminal, how far long work has come; "" ends the line. */
static void progress(const char *what, uint64_t n, uint64_t bytes) {
    static time_t shown;
    static int open_line;
    if (o.json || !isatty(2)) return;
    if (what[0] == 0) {
        if (open_line) fprintf(stderr, "\r\033[K");
        open_line = 0;
    } else if (time(NULL) != shown) {
        shown = time(NULL);
        open_line = 1;
        fprintf(stderr, "\r%s %llu messages, %llu bytes\033[K", what, (unsigned long long)n,
                (unsigned long long)bytes);
    }
}

/* Says why, and returns the exit code. */
static int failed(const char *what, opcomms_err rc, const opcomms_error *err) {
    const char *text = err != NULL && err->code == rc ? err->text : opcomms_err_text(rc);
    progress("", 0, 0);
    if (o.json) {
        json_begin(stdout);
        json_bool("ok", 0);
        json_text("command", command);
        if (what != NULL) json_text("what", what);
        json_text("error", name_of(rc));
        json_text("text", text);
        if (err != NULL && err->code == rc && err->line != 0) json_number("line", err->line);
        if (err != NULL && err->code == rc && err->position != 0) {
            json_number("position", err->position);
        }
        json_number("exit", (uint64_t)exit_of(rc));
        json_end();
    } else {
        fflush(stdout);
        fprintf(stderr, "opcomms %s: ", command);
        if (what != NULL) print_safe(stderr, what, strlen(what));
        fprintf(stderr, "%s", what != NULL ? ": " : "");
        print_safe(stderr, text, strlen(text));
        if (err != NULL && err->code == rc && err->position != 0) {
            fprintf(stderr, ", at byte %llu", (unsigned long long)err->position);
        }
        fprintf(stderr, "\n");
    }
    return exit_of(rc);
}

static int no_memory(void) { return failed(NULL, OPCOMMS_E_NOMEM, NULL); }

/* A message for people or as JSON. */
static void print_message(const opcomms_identifier *from, uint64_t number, uint32_t flags,
                          const void *data, size_t len) {
    if (o.raw) {
        fwrite(data, 1, len, stdout);
    } else if (o.json) {
        json("ok:b number:u from:s from_id:d kind:s bytes:u text:x", 1, (uint64_t)number,
             from->hash, (int)from->id, (flags & OPCOMMS_MESSAGE_TEXT) ? "text" : "bytes",
             (uint64_t)len, data, (size_t)len);
    } else {
        printf("%llu from %s:%d, %llu bytes: ", (unsigned long long)number, from->hash, from->id,
               (unsigned long long)len);
        print_safe(stdout, data, len);
        printf("\n");
    }
}

/* ---- input ----------------------------------------------------------------------------------- */

static int is_hash(const char *s, size_t len) {
    return len == 64 && strspn(s, "0123456789abcdef") >= 64;
}

/* "HASH", "HASH:ID" and, when `address` is given, "@IP:PORT" behind it. */
static int parse_whom(const char *s, opcomms_identifier *who, char address[64]) {
    const char *at = strchr(s, '@');
    size_t len = at != NULL ? (size_t)(at - s) : strlen(s);
    char text[80];
    if ((at != NULL) != (address != NULL) || len < 64 || len > 68) return 0;
    memcpy(text, s, len);
    text[len] = 0;
    if (len == 64) strcat(text, ":0");
    if (!is_hash(s, 64) && strspn(s, "0123456789abcdef") < 64) return 0;
    if (opcomms_identifier_parse(text, who) != OPCOMMS_OK || !is_hash(who->hash, strlen(who->hash)))
        return 0;
    if (address != NULL) {
        if (strlen(at + 1) >= 64 || at[1] == 0) return 0;
        strcpy(address, at + 1);
    }
    return 1;
}

/* All of a stream, at most BYTES_MAX. The caller frees. */
static char *read_all(FILE *f, size_t *len, opcomms_err *rc) {
    size_t cap = 65536, n;
    char *p = (char *)malloc(cap);
    *len = 0;
    *rc = p == NULL ? OPCOMMS_E_NOMEM : OPCOMMS_OK;
    while (*rc == OPCOMMS_OK && (n = fread(p + *len, 1, cap - *len, f)) > 0) {
        *len += n;
        if (*len > BYTES_MAX) *rc = OPCOMMS_E_LIMIT;
        if (*len == cap && *rc == OPCOMMS_OK) {
            char *q = (char *)realloc(p, cap *= 2);
            if (q == NULL) {
                *rc = OPCOMMS_E_NOMEM;
            } else {
                p = q;
            }
        }
    }
    if (*rc == OPCOMMS_OK && ferror(f)) *rc = OPCOMMS_E_IO;
    if (*rc == OPCOMMS_OK) return p;
    free(p);
    return NULL;
}

/* ---- passwords: from a file that the environment names, or typed without echo ---------------- */

/* Up to the end of the line; -1: given up. The terminal sends each key, also Ctrl-C, as it is. */
static int type_line(int tty, char *buf, size_t cap) {
    size_t n = 0;
    char c;
    while (read(tty, &c, 1) == 1) {
        if (c == '\n' || c == '\r') return (int)n;
        if (c == 3 || c == 4) return -1;
        if (c == 127 || c == 8) {
            n -= n > 0;
        } else if (n < cap) {
            buf[n++] = c;
        }
    }
    return -1;
}

static char password_env[] = "OPCOMMS_PASSWORD_FILE", new_env[] = "OPCOMMS_NEW_PASSWORD_FILE";

static int type_password(const char *prompt, char *buf, size_t cap) {
    struct termios old, quiet;
    int tty = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY), n = -1;
    if (tty < 0) return -1;
    if (tcgetattr(tty, &old) == 0) {
        quiet = old;
        quiet.c_lflag &= ~(tcflag_t)(ECHO | ICANON | ISIG);
        quiet.c_cc[VMIN] = 1;
        quiet.c_cc[VTIME] = 0;
        if (write(tty, prompt, strlen(prompt)) > 0 && tcsetattr(tty, TCSAFLUSH, &quiet) == 0) {
            n = type_line(tty, buf, cap);
            (void)tcsetattr(tty, TCSAFLUSH, &old);
            if (write(tty, "\n", 1) < 0) n = -1;
        }
    }
    (void)close(tty);
    return n;
}

static int password_file(const char *path, char *buf, size_t cap) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n, len = 0;
    if (fd < 0) return -1;
    while ((size_t)len < cap && (n = read(fd, buf + len, cap - (size_t)len)) > 0) len += n;
    (void)close(fd);
    if (len > 0 && buf[len - 1] == '\n') len--;
    return (int)len;
}

static int password(void *user, char *buf, size_t cap) { /* of a key that is there */
    const char *path = getenv(password_env);
    (void)user;
    return path != NULL ? password_file(path, buf, cap)
                        : type_password("Password of the key: ", buf, cap);
}

static int new_password(void *user, char *buf, size_t cap) {
    const char *path = getenv((const char *)user);
    char again[1024];
    int n, m;
    if (path != NULL) return password_file(path, buf, cap);
    n = type_password("New password: ", buf, cap);
    m = n < 0 ? -1 : type_password("Once more: ", again, sizeof again);
    if (m != n || memcmp(buf, again, n < 0 ? 0 : (size_t)n) != 0) n = -1;
    memset(again, 0, sizeof again);
    return n;
}

/* ---- the peer -------------------------------------------------------------------------------- */

static opcomms_allow_list *allow;
static opcomms_routing_table *routes;
static opcomms_peer *peer, *home; /* home: with our log, while `peer` speaks to a server */
static opcomms_client *channel;
static opcomms_settings *settings;

static void on_log(void *user, int level, const char *text) { /* never holds payload or keys */
    static const char *const names[] = {"", "error", "warning", "info"};
    (void)user;
    if (level == OPCOMMS_LOG_INFO) return;
    if (o.json) {
        flockfile(stderr);
        fprintf(stderr, "{\"event\":\"%s\",\"text\":\"", names[level]);
        print_safe(stderr, text, strlen(text));
        fprintf(stderr, "\"}\n");
        funlockfile(stderr);
    } else {
        fprintf(stderr, "opcomms %s: %s: %s\n", command, names[level], text);
    }
}

/* What --config says, then what the other options say. Lists are empty: whom to trust is decided by
   the command. */
static int begin_config(opcomms_config *cfg) {
    opcomms_config_init(cfg);
    cfg->log = on_log;
    cfg->password = password;
    if (o.config != NULL) {
        opcomms_error err;
        opcomms_err rc = opcomms_settings_load(NULL, o.config, &settings, &err);
        if (rc == OPCOMMS_OK) rc = opcomms_settings_config(settings, cfg);
        if (rc != OPCOMMS_OK) return failed(o.config, rc, &err);
    }
    if (o.key != NULL) cfg->key_file = o.key;
    if (o.ca != NULL) cfg->ca_key_file = o.ca;
    if (o.log != NULL) cfg->log_path = o.log;
    if (o.listen != NULL) cfg->address = o.listen;
    if (o.timeout != 0) cfg->send_timeout_ms = o.timeout;
    if (o.mailboxes != 0) cfg->mailboxes_max = o.mailboxes;
    if (cfg->key_file == NULL) return usage("--key is needed, or --config with a key_file", NULL);
    if (opcomms_allow_list_new(NULL, &allow) != OPCOMMS_OK ||
        opcomms_routing_table_new(NULL, &routes) != OPCOMMS_OK) {
        return no_memory();
    }
    return END_OK;
}

static int open_peer(const opcomms_config *cfg) {
    opcomms_error err;
    opcomms_err rc = opcomms_new(cfg, &peer, &err);
    return rc == OPCOMMS_OK ? END_OK : failed(NULL, rc, &err);
}

/* A peer that does not listen, and speaks to nobody but `hash`. Without a store it only calls, and
   nothing is stored. With one it has our log, which must exist when `taking`, and is not pumped: it
   touches no network, where what is in the outbox would meet lists that are not ours. */
static int open_quiet(const char *hash, int store, int taking) {
    opcomms_config cfg;
    int x = begin_config(&cfg);
    if (x != END_OK) return x;
    cfg.allow = allow;
    cfg.routes = routes;
    cfg.flags |= OPCOMMS_NO_LISTEN | (store ? OPCOMMS_NO_BACKGROUND : OPCOMMS_MEMORY_STORE);
    if (store && (cfg.flags & OPCOMMS_MEMORY_STORE)) return usage("a log is needed", NULL);
    if (taking && cfg.log_path == NULL) {
        return usage("--log is needed, or --config with a log_path", NULL);
    }
    if (taking && access(cfg.log_path, F_OK) != 0) {
        return failed(cfg.log_path, OPCOMMS_E_NOT_FOUND, NULL);
    }
    if (hash != NULL && opcomms_allow_list_add(allow, hash, NULL) != OPCOMMS_OK) {
        return no_memory();
    }
    return open_peer(&cfg);
}

/* One without a store, with a channel to a server. */
static int open_channel(const opcomms_identifier *server, const char *address) {
    opcomms_error err;
    opcomms_err rc;
    int x = open_quiet(server->hash, 0, 0);
    if (x != END_OK) return x;
    rc = opcomms_client_open(peer, server->hash, address, &channel, &err);
    return rc == OPCOMMS_OK ? END_OK : failed(address, rc, &err);
}

static void release_lists(void) {
    opcomms_allow_list_release(allow);
    opcomms_routing_table_release(routes);
    opcomms_settings_free(settings);
    settings = NULL;
    allow = NULL;
    routes = NULL;
}

/* Ends the peers. A storage error turns a success into a failure. */
static int close_peer(int x) {
    opcomms_peer *both[2];
    int i;
    opcomms_client_close(channel);
    channel = NULL;
    both[0] = peer;
    both[1] = home;
    for (i = 0; i < 2; i++) {
        opcomms_err rc = both[i] != NULL ? opcomms_stop(both[i]) : OPCOMMS_OK;
        if (rc != OPCOMMS_OK && x == END_OK) x = failed(NULL, rc, NULL);
        opcomms_free(both[i]);
    }
    peer = home = NULL;
    release_lists();
    return x;
}

/* ---- keys ------------------------------------------------------------------------------------ */

static int cmd_keygen(int n, char **arg) {
    static const struct { const char *name; opcomms_key_type type; } types[] = {
        {"p256", OPCOMMS_KEY_P256}, {"rsa2048", OPCOMMS_KEY_RSA_2048},
        {"rsa3072", OPCOMMS_KEY_RSA_3072}, {"rsa4096", OPCOMMS_KEY_RSA_4096}};
    const char *type = o.type != NULL ? o.type : "p256";
    char hash[65];
    opcomms_error err;
    opcomms_err rc;
    size_t i = 0;
    (void)n;
    while (i < 4 && strcmp(types[i].name, type) != 0) i++;
    if (i == 4) return usage("no such type of key", type);
    rc = o.password ? opcomms_generate_key_file_with_password(
                          arg[0], types[i].type, new_password, password_env, 0, &err)
                    : opcomms_generate_key_file(arg[0], types[i].type, &err);
    if (rc == OPCOMMS_OK && !o.password) {
        rc = opcomms_get_pubk_hash_from_privk(arg[0], hash, &err);
    } else if (rc == OPCOMMS_OK) {
        rc = opcomms_get_pubk_hash_from_privk_with_password(arg[0], password, NULL, hash, &err);
    }
    if (rc != OPCOMMS_OK) return failed(arg[0], rc, &err);
    if (!o.json) {
        printf("%s\n", hash);
        return END_OK;
    }
    json("ok:b file:s type:s hash:s", 1, arg[0], type, hash);
    return END_OK;
}

static int cmd_passwd(int n, char **arg) {
    opcomms_error err;
    opcomms_err rc = opcomms_change_key_password(arg[0], password, NULL,
                                                 o.none ? NULL : new_password, new_env, 0, &err);
    (void)n;
    if (rc != OPCOMMS_OK) return failed(arg[0], rc, &err);
    if (o.json) json("ok:b file:s encrypted:b", 1, arg[0], !o.none);
    return END_OK;
}

/* Of a private key, or of a certificate. */
static opcomms_err hash_file(const char *path, char hash[65], int *is_key, opcomms_error *err) {
    opcomms_error other;
    opcomms_err rc =
        opcomms_get_pubk_hash_from_privk_with_password(path, password, NULL, hash, err);
    *is_key = rc == OPCOMMS_OK;
    if (rc == OPCOMMS_OK || rc == OPCOMMS_E_NOT_FOUND || rc == OPCOMMS_E_PASSWORD ||
        rc == OPCOMMS_E_ENCRYPTED) {
        return rc;
    }
    return opcomms_pubk_hash_from_cert_file(path, hash, &other) == OPCOMMS_OK ? OPCOMMS_OK : rc;
}

static int cmd_hash(int n, char **arg) {
    int i, x = END_OK;
    for (i = 0; i < n; i++) {
        char hash[65];
        opcomms_error err;
        int is_key = 0;
        opcomms_err rc = hash_file(arg[i], hash, &is_key, &err);
        if (rc != OPCOMMS_OK) {
            x = failed(arg[i], rc, &err);
        } else if (o.json) {
            json("ok:b file:s of:s hash:s", 1, arg[i], is_key ? "key" : "certificate", hash);
        } else if (n > 1) {
            printf("%s  %s\n", hash, arg[i]);
        } else {
            printf("%s\n", hash);
        }
    }
    return x;
}

/* Writes a new file; an existing one stays. */
static int write_new(const char *path, const void *data, size_t len) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    const char *p = (const char *)data;
    opcomms_err rc = OPCOMMS_E_IO;
    if (fd < 0) return failed(path, errno == EEXIST ? OPCOMMS_E_IN_USE : rc, NULL);
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        p += n;
        len -= (size_t)n;
    }
    if (close(fd) == 0 && len == 0) return END_OK;
    (void)unlink(path);
    return failed(path, rc, NULL);
}

static int cmd_cert(int n, char **arg) {
    char pem[4096];
    size_t len = 0;
    opcomms_error err;
    opcomms_err rc;
    int x;
    if ((n == 0) != (o.ca_cert != 0)) return usage("give a KEY, or --ca-cert", NULL);
    rc = o.ca_cert ? opcomms_make_ca_cert_with_password(o.ca, password, NULL, pem, sizeof pem,
                                                        &len, &err)
                   : opcomms_make_cert_with_password(arg[0], o.ca, password, NULL, pem,
                                                     sizeof pem, &len, &err);
    if (rc != OPCOMMS_OK) return failed(o.ca_cert ? o.ca : arg[0], rc, &err);
    x = o.out != NULL ? write_new(o.out, pem, len) : END_OK;
    if (x != END_OK) return x;
    if (o.json) {
        json_begin(stdout);
        json_bool("ok", 1);
        if (o.out != NULL) json_text("file", o.out);
        if (o.out == NULL) json_data("pem", pem, len);
        json_end();
    } else if (o.out == NULL) {
        fwrite(pem, 1, len, stdout);
    }
    return END_OK;
}

/* ---- sending --------------------------------------------------------------------------------- */

static struct {
    opcomms_identifier to;
    char address[64]; /* empty: none */
    uint64_t sent, bytes;
    int (*put)(const void *data, size_t len);
} out;

static int send_one(const void *data, size_t len) {
    opcomms_error err;
    char what[64];
    opcomms_err rc = opcomms_client_send(channel, (uint8_t)o.from_id, &out.to, data, len,
                                         o.text ? OPCOMMS_MESSAGE_TEXT : 0, o.timeout, &err);
    if (rc != OPCOMMS_OK) {
        snprintf(what, sizeof what, "message %llu", (unsigned long long)out.sent + 1);
        return failed(what, rc, &err);
    }
    out.sent++;
    out.bytes += len;
    progress("sent", out.sent, out.bytes);
    if (o.json) {
        json("ok:b sent:u bytes:u", 1, (uint64_t)out.sent, (uint64_t)len);
    }
    return END_OK;
}

static int send_stream(FILE *f) {
    size_t len = 0;
    opcomms_err rc = OPCOMMS_OK;
    char *p = read_all(f, &len, &rc);
    int x = p == NULL ? failed("input", rc, NULL) : out.put(p, len);
    free(p);
    return x;
}

static int send_lines(void) {
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    int x = END_OK;
    while (x == END_OK && (n = getline(&line, &cap, stdin)) >= 0) {
        if (n > 0 && line[n - 1] == '\n') n--;
        x = out.put(line, (size_t)n);
    }
    free(line);
    if (x == END_OK && ferror(stdin)) x = failed("standard input", OPCOMMS_E_IO, NULL);
    return x;
}

static int too_many_inputs(int n) {
    if ((n > 0) + (o.file != NULL) + o.lines <= 1) return END_OK;
    return usage("give messages, --file or --lines, one of them", NULL);
}

/* Each message that the arguments and options name goes to `put`, until one fails. */
static int send_inputs(int n, char **arg, int (*put)(const void *data, size_t len)) {
    int i, x = END_OK;
    out.put = put;
    for (i = 0; i < n && x == END_OK; i++) x = put(arg[i], strlen(arg[i]));
    if (o.file != NULL && strcmp(o.file, "-") != 0) {
        FILE *f = fopen(o.file, "rb");
        if (f == NULL) {
            return failed(o.file, errno == ENOENT ? OPCOMMS_E_NOT_FOUND : OPCOMMS_E_IO, NULL);
        }
        x = send_stream(f);
        fclose(f);
    } else if (o.lines) {
        x = send_lines();
    } else if (n == 0) {
        x = send_stream(stdin);
    }
    progress("", 0, 0);
    return x;
}

static int cmd_send(int n, char **arg) {
    opcomms_identifier server;
    int x;
    if (o.to == NULL) return usage("--to is needed", NULL);
    x = too_many_inputs(n);
    if (x != END_OK) return x;
    if (o.server != NULL) { /* a mailbox at somebody else's server */
        if (!parse_whom(o.server, &server, out.address)) return usage("not HASH@IP:PORT", o.server);
        if (!parse_whom(o.to, &out.to, NULL)) {
            return usage("with --server, --to is HASH or HASH:ID", o.to);
        }
    } else {
        if (!parse_whom(o.to, &out.to, out.address)) return usage("not HASH[:ID]@IP:PORT", o.to);
        server = out.to;
    }
    x = open_channel(&server, out.address);
    if (x == END_OK) x = send_inputs(n, arg, send_one);
    if (!o.json && x == END_OK) {
        printf("sent %llu to %s:%d\n", (unsigned long long)out.sent, out.to.hash, out.to.id);
    }
    return close_peer(x);
}

static uint64_t now_us(void) {
    const opcomms_platform *p = opcomms_platform_default();
    return p->now_us(p->user);
}

static int cmd_ping(int n, char **arg) {
    opcomms_identifier to;
    opcomms_error err;
    char address[64];
    uint32_t i, count = o.count != 0 ? o.count : 1;
    int x;
    (void)n;
    if (!parse_whom(arg[0], &to, address)) return usage("not HASH@IP:PORT", arg[0]);
    x = open_quiet(to.hash, 0, 0);
    for (i = 0; i < count && x == END_OK; i++) {
        uint64_t start = now_us(), took;
        opcomms_err rc = opcomms_ping(peer, to.hash, address, o.timeout, &err);
        took = now_us() - start;
        if (rc != OPCOMMS_OK) {
            x = failed(address, rc, &err);
        } else if (o.json) {
            json("ok:b hash:s address:s us:u", 1, to.hash, address, (uint64_t)took);
        } else {
            printf("%s answers in %llu us\n", address, (unsigned long long)took);
            fflush(stdout);
        }
    }
    return close_peer(x);
}

/* ---- receiving ------------------------------------------------------------------------------- */

static void rest_ms(long ms) {
    struct timespec t;
    t.tv_sec = ms / 1000;
    t.tv_nsec = ms % 1000 * 1000000;
    (void)nanosleep(&t, NULL);
}

/* Is what was printed out of our hands? Only then is a message acknowledged. */
static int printed(void) { return fflush(stdout) == 0 && !ferror(stdout); }

/* From our mailbox at a server. */
static int recv_remote(uint32_t most, char *buf) {
    uint64_t start = now_us();
    uint32_t got = 0;
    opcomms_error err;
    while (most == 0 || got < most) {
        opcomms_mail mail;
        opcomms_err rc =
            opcomms_client_get(channel, (uint8_t)o.id, &mail, buf, BYTES_MAX, o.timeout, &err);
        if (rc == OPCOMMS_E_EMPTY && got == 0 &&
            now_us() - start < (uint64_t)o.wait * 1000000u) {
            rest_ms(200);
            continue;
        }
        if (rc == OPCOMMS_E_EMPTY && got > 0) break;
        if (rc != OPCOMMS_OK) return failed(NULL, rc, &err);
        print_message(&mail.from, mail.uid, mail.flags, buf, (size_t)mail.bytes);
        if (!printed()) return failed("standard output", OPCOMMS_E_IO, NULL);
        got++;
        if (o.keep) break; /* the next call would give the same one again */
        rc = opcomms_client_ack(channel, (uint8_t)o.id, mail.uid, o.timeout, &err);
        if (rc != OPCOMMS_OK) return failed("not acknowledged, will come again", rc, &err);
    }
    return END_OK;
}

/* The whole payload of a message that was handed out. */
static opcomms_err payload_of(opcomms_message *m, char *buf) {
    size_t at = 0, got = 1, size = opcomms_message_size(m);
    opcomms_err rc = size > BYTES_MAX ? OPCOMMS_E_LIMIT : OPCOMMS_OK;
    while (rc == OPCOMMS_OK && at < size && got > 0) {
        rc = opcomms_message_read(m, at, buf + at, size - at, &got);
        at += got;
    }
    return rc;
}

static int take_one(opcomms_message *m, char *buf) {
    opcomms_identifier from;
    opcomms_error err;
    opcomms_err rc = payload_of(m, buf);
    if (rc == OPCOMMS_OK) {
        opcomms_message_from(m, &from);
        print_message(&from, opcomms_message_number(m), opcomms_message_flags(m), buf,
                      opcomms_message_size(m));
    }
    if (rc != OPCOMMS_OK || !printed()) {
        opcomms_release(m);
        return failed("message", rc == OPCOMMS_OK ? OPCOMMS_E_IO : rc, NULL);
    }
    if (o.keep) return END_OK; /* out until the peer ends, so that the next one comes */
    rc = opcomms_ack(m, &err);
    return rc == OPCOMMS_OK ? END_OK : failed("message", rc, &err);
}

/* From our own log, of which no peer is running. */
static int recv_local(uint32_t most, char *buf) {
    uint32_t got = 0;
    int x = END_OK;
    while (x == END_OK && (most == 0 || got < most)) {
        opcomms_message *m = NULL;
        opcomms_error err;
        opcomms_err rc = opcomms_receive_id(peer, (uint8_t)o.id, 0, &m, &err);
        if (rc == OPCOMMS_E_EMPTY && got > 0) break;
        if (rc == OPCOMMS_E_LIMIT && o.keep) break;
        x = rc == OPCOMMS_OK ? take_one(m, buf) : failed(NULL, rc, &err);
        got++;
    }
    return x;
}

static int cmd_recv(int n, char **arg) {
    opcomms_identifier server;
    char address[64], *buf;
    uint32_t most = o.max_set ? o.max : 1;
    int x;
    (void)n;
    (void)arg;
    if (o.server != NULL && o.log != NULL) return usage("give --server or --log", NULL);
    if (o.server != NULL && !parse_whom(o.server, &server, address)) {
        return usage("not HASH@IP:PORT", o.server);
    }
    buf = (char *)malloc(BYTES_MAX);
    if (buf == NULL) return no_memory();
    x = o.server != NULL ? open_channel(&server, address) : open_quiet(NULL, 1, 1);
    if (x == END_OK) x = o.server != NULL ? recv_remote(most, buf) : recv_local(most, buf);
    free(buf);
    return close_peer(x);
}

/* ---- serving --------------------------------------------------------------------------------- */

static volatile sig_atomic_t end_asked, reload_asked;
static void on_signal(int s) {
    if (s == SIGHUP) {
        reload_asked = 1;
    } else {
        end_asked = 1;
    }
}

static void catch_signals(void) {
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_handler = on_signal;
    (void)sigaction(SIGINT, &a, NULL);
    (void)sigaction(SIGTERM, &a, NULL);
    (void)sigaction(SIGHUP, &a, NULL);
}

/* Fills in what only a serving peer has. */
static int serve_config(opcomms_config *cfg) {
    static const char *const modes[] = {"always", "interval", "never"};
    opcomms_error err;
    opcomms_err rc;
    int i = 0;
    if (o.durability != NULL) {
        while (i < 3 && strcmp(modes[i], o.durability) != 0) i++;
        if (i == 3) return usage("no such durability", o.durability);
        cfg->durability = (opcomms_durability)i;
    }
    if (o.protocol != NULL) {
        if (strcmp(o.protocol, "newer") == 0) {
            cfg->protocol = OPCOMMS_PROTOCOL_NEWER;
        } else if (strcmp(o.protocol, "v0.5.0") != 0) {
            return usage("no such protocol", o.protocol);
        }
    }
    if (o.allow != NULL) {
        rc = opcomms_allow_list_load(allow, o.allow, &err);
        if (rc != OPCOMMS_OK) return failed(o.allow, rc, &err);
        cfg->allow = allow;
    }
    if (o.routes != NULL) {
        rc = opcomms_routing_table_load(routes, o.routes, &err);
        if (rc != OPCOMMS_OK) return failed(o.routes, rc, &err);
        cfg->routes = routes;
    }
    if (cfg->allow == NULL || cfg->routes == NULL) {
        return usage("--allow and --routes are needed, or --config that has them", NULL);
    }
    return END_OK;
}

static void say_listening(void) {
    char hash[65] = "", address[64] = "";
    (void)opcomms_get_pubk_hash(peer, hash);
    (void)opcomms_get_address(peer, address, sizeof address);
    if (o.json) {
        json("ok:b event:s hash:s address:s", 1, "listening", hash, address);
    } else {
        fprintf(o.raw ? stderr : stdout, "I am %s@%s\n", hash, address);
        fflush(stdout);
    }
}

/* Each list is read again from its file: as a whole or, when something is wrong, not at all. */
static void reload(const opcomms_config *cfg) {
    opcomms_error err;
    opcomms_err rc = opcomms_allow_list_reload(cfg->allow, &err);
    int bad = rc != OPCOMMS_OK;
    if (bad) fprintf(stderr, "opcomms serve: allow list stays as before: %s\n", err.text);
    rc = opcomms_routing_table_reload(cfg->routes, &err);
    bad |= rc != OPCOMMS_OK;
    if (rc != OPCOMMS_OK) fprintf(stderr, "opcomms serve: routes stay as before: %s\n", err.text);
    if (!bad) fprintf(stderr, "opcomms serve: lists are read again\n");
}

static int cmd_serve(int n, char **arg) {
    opcomms_config cfg;
    char *buf;
    uint32_t got = 0;
    int x;
    (void)n;
    (void)arg;
    buf = (char *)malloc(BYTES_MAX);
    if (buf == NULL) return no_memory();
    x = begin_config(&cfg);
    if (x == END_OK) x = serve_config(&cfg);
    if (x == END_OK) x = open_peer(&cfg);
    if (x == END_OK) {
        catch_signals();
        say_listening();
    }
    while (x == END_OK && !end_asked && (o.count == 0 || got < o.count)) {
        opcomms_message *m = NULL;
        opcomms_error err;
        opcomms_err rc;
        if (reload_asked) {
            reload_asked = 0;
            reload(&cfg);
        }
        if (o.keep) { /* a mailbox server: its clients fetch */
            rest_ms(100);
            continue;
        }
        rc = opcomms_receive_id(peer, (uint8_t)o.id, 100, &m, &err);
        if (rc == OPCOMMS_E_EMPTY) continue;
        x = rc == OPCOMMS_OK ? take_one(m, buf) : failed(NULL, rc, &err);
        got++;
    }
    free(buf);
    return close_peer(x);
}

/* ---- drain ----------------------------------------------------------------------------------- */

static struct {
    uint64_t messages, bytes;
} drained;

/* One mailbox: fetched, stored durably here, and only then acknowledged there. */
static int drain_box(uint8_t id, char *buf) {
    opcomms_error err;
    char what[80];
    for (;;) {
        opcomms_mail mail;
        opcomms_err rc = opcomms_client_get(channel, id, &mail, buf, BYTES_MAX, o.timeout, &err);
        if (rc == OPCOMMS_E_EMPTY) return END_OK;
        if (rc != OPCOMMS_OK) return failed("fetching", rc, &err);
        rc = opcomms_local_import(home, id, &mail, buf, &err);
        snprintf(what, sizeof what, "message %llu, storing it here", (unsigned long long)mail.uid);
        if (rc != OPCOMMS_OK) return failed(what, rc, &err);
        rc = opcomms_client_ack(channel, id, mail.uid, o.timeout, &err);
        snprintf(what, sizeof what, "message %llu, stored here but not removed there",
                 (unsigned long long)mail.uid);
        if (rc != OPCOMMS_OK) return failed(what, rc, &err);
        drained.messages++;
        drained.bytes += mail.bytes;
        progress("drained", drained.messages, drained.bytes);
    }
}

static int cmd_drain(int n, char **arg) {
    opcomms_identifier server;
    char address[64], *buf;
    uint32_t id;
    int x;
    (void)n;
    (void)arg;
    if (o.from == NULL) return usage("--from is needed", NULL);
    if (!parse_whom(o.from, &server, address)) return usage("not HASH@IP:PORT", o.from);
    buf = (char *)malloc(BYTES_MAX);
    if (buf == NULL) return no_memory();
    x = open_quiet(NULL, 1, 0);
    home = peer; /* its lists are its own now */
    peer = NULL;
    release_lists();
    if (x == END_OK) x = open_channel(&server, address);
    for (id = 0; x == END_OK && id < 256; id++) {
        if (o.all_ids || id == o.id) x = drain_box((uint8_t)id, buf);
    }
    progress("", 0, 0);
    free(buf);
    x = close_peer(x);
    if (o.json) {
        json("ok:b drained:u bytes:u empty:b", x == END_OK, (uint64_t)drained.messages,
             (uint64_t)drained.bytes, x == END_OK);
    } else {
        printf("drained %llu messages, %llu bytes%s\n", (unsigned long long)drained.messages,
               (unsigned long long)drained.bytes, x == END_OK ? "; nothing is left there" : "");
    }
    return x;
}

/* ---- allow list and routing table ------------------------------------------------------------ */

#define ENTRY_MAX 2048

/* Loads the list of a command; with `may_be_new` a missing file is an empty list. */
static int load_list(const char *path, int is_routes, int may_be_new) {
    opcomms_error err;
    opcomms_err rc;
    if (opcomms_allow_list_new(NULL, &allow) != OPCOMMS_OK ||
        opcomms_routing_table_new(NULL, &routes) != OPCOMMS_OK) {
        return no_memory();
    }
    rc = is_routes ? opcomms_routing_table_load(routes, path, &err)
                   : opcomms_allow_list_load(allow, path, &err);
    if (rc == OPCOMMS_E_NOT_FOUND && may_be_new) return END_OK;
    return rc == OPCOMMS_OK ? END_OK : failed(path, rc, &err);
}

/* The end of a change that came out as rc: writes the file. */
static int save_list(const char *path, int is_routes, opcomms_err rc) {
    opcomms_error err;
    uint64_t count;
    int all;
    if (rc != OPCOMMS_OK) return close_peer(failed(path, rc, NULL));
    rc = is_routes ? opcomms_routing_table_save(routes, path, &err)
                   : opcomms_allow_list_save(allow, path, &err);
    if (rc != OPCOMMS_OK) return close_peer(failed(path, rc, &err));
    count = is_routes ? opcomms_routing_table_count(routes) : opcomms_allow_list_count(allow);
    all = is_routes ? opcomms_routing_table_is_all(routes) : opcomms_allow_list_is_all(allow);
    if (o.json) json("ok:b file:s entries:u allow_all:b", 1, path, count, all);
    return close_peer(END_OK);
}

/* The begin of a change: loads, and does what --all says. Entries beside allow_all have no effect,
   and are not written. */
static int change_list(const char *path, int is_routes, int adding) {
    int x = load_list(path, is_routes, adding);
    int all = is_routes ? opcomms_routing_table_is_all(routes) : opcomms_allow_list_is_all(allow);
    if (x != END_OK) return close_peer(x);
    if (o.all) {
        (void)(is_routes ? opcomms_routing_table_allow_all(routes, adding)
                         : opcomms_allow_list_allow_all(allow, adding)); /* no list is missing */
    } else if (all) {
        return close_peer(failed("it says allow_all, beside which nothing counts",
                                 OPCOMMS_E_INVAL, NULL));
    }
    return END_OK;
}

/* What a check found: the answer, in words, and its exit code. */
static int answer(int yes, int exit_no, const char *why) {
    if (o.json) {
        json("ok:b why:s exit:u", yes, why, (uint64_t)(yes ? END_OK : exit_no));
    } else {
        printf("%s: ", yes ? "yes" : "no");
        print_safe(stdout, why, strlen(why));
        printf("\n");
    }
    return yes ? END_OK : exit_no;
}

static int print_list(const char *path, int is_routes) {
    static char a[ENTRY_MAX], b[ENTRY_MAX];
    size_t i;
    int x = load_list(path, is_routes, 0);
    if (x != END_OK) return close_peer(x);
    if (is_routes ? opcomms_routing_table_is_all(routes) : opcomms_allow_list_is_all(allow)) {
        printf(o.json ? "{\"allow_all\":true}\n" : "allow_all\n");
    }
    for (i = 0; (is_routes ? opcomms_routing_table_entry(routes, i, a, b, ENTRY_MAX)
                           : opcomms_allow_list_entry(allow, i, a, b, ENTRY_MAX)) == OPCOMMS_OK;
         i++) {
        if (b[0] == 0 && is_routes) continue; /* a sender without destinations */
        if (b[0] == 0) strcpy(b, "any");
        if (o.json) {
            json(is_routes ? "from:s to:s" : "hash:s ip:s", a, b);
        } else {
            print_safe(stdout, a, strlen(a));
            printf(is_routes ? " -> " : "  ");
            print_safe(stdout, b, strlen(b));
            printf("\n");
        }
    }
    return close_peer(END_OK);
}

static int cmd_allow_list(int n, char **arg) {
    (void)n;
    return print_list(arg[0], 0);
}
static int cmd_route_list(int n, char **arg) {
    (void)n;
    return print_list(arg[0], 1);
}

static int cmd_allow_add(int n, char **arg) {
    opcomms_error err;
    opcomms_err rc = OPCOMMS_OK;
    int i, x;
    if (o.all == (n > 1)) return usage("give hashes or files, or --all", NULL);
    x = change_list(arg[0], 0, 1);
    if (x != END_OK) return x;
    for (i = 1; i < n; i++) {
        char hash[65];
        int is_key;
        err.code = OPCOMMS_OK;
        if (is_hash(arg[i], strlen(arg[i]))) {
            strcpy(hash, arg[i]);
        } else {
            rc = hash_file(arg[i], hash, &is_key, &err);
        }
        if (rc == OPCOMMS_OK) rc = opcomms_allow_list_add(allow, hash, o.ip);
        if (rc != OPCOMMS_OK) return close_peer(failed(arg[i], rc, &err));
    }
    return save_list(arg[0], 0, OPCOMMS_OK);
}

static int cmd_allow_remove(int n, char **arg) {
    int i, x;
    if (o.all == (n > 1)) return usage("give hashes, or --all", NULL);
    x = change_list(arg[0], 0, 0);
    if (x != END_OK) return x;
    for (i = 1; i < n; i++) {
        opcomms_err rc = opcomms_allow_list_remove(allow, arg[i]);
        if (rc != OPCOMMS_OK) return close_peer(failed(arg[i], rc, NULL));
    }
    return save_list(arg[0], 0, OPCOMMS_OK);
}

/* Does the allow list admit the hash, and why? */
static int admits(const char *hash, char *why, size_t cap) {
    static char entry[ENTRY_MAX], ip[ENTRY_MAX];
    size_t i;
    if (opcomms_allow_list_is_all(allow)) {
        snprintf(why, cap, "the allow list says allow_all");
        return 1;
    }
    for (i = 0; opcomms_allow_list_entry(allow, i, entry, ip, ENTRY_MAX) == OPCOMMS_OK; i++) {
        if (strcmp(entry, hash) != 0) continue;
        if (ip[0] == 0) {
            snprintf(why, cap, "the allow list admits it from any address");
        } else if (o.ip == NULL) {
            snprintf(why, cap, "the allow list admits it, from %s only", ip);
        } else if (opcomms_allow_list_is_allowed(allow, hash, o.ip)) {
            snprintf(why, cap, "the allow list admits it from %s", ip);
        } else {
            snprintf(why, cap, "the allow list admits it from %s only, not from %s", ip, o.ip);
            return 0;
        }
        return 1;
    }
    snprintf(why, cap, "the allow list does not name it");
    return 0;
}

static int cmd_allow_check(int n, char **arg) {
    char why[400];
    int x;
    (void)n;
    if (!is_hash(arg[1], strlen(arg[1]))) return usage("not a hash", arg[1]);
    x = load_list(arg[0], 0, 0);
    if (x == END_OK) {
        int yes = admits(arg[1], why, sizeof why);
        x = answer(yes, END_NOT_ALLOWED, why);
    }
    return close_peer(x);
}

/* A rule's end; a text that is no hash could never match anybody. */
static int rule_end(const char *text, opcomms_identifier *id) {
    return opcomms_route_identifier_parse(text, id) == OPCOMMS_OK &&
           is_hash(id->hash, strlen(id->hash));
}

static int cmd_route_add(int n, char **arg) {
    opcomms_identifier id;
    opcomms_err rc = OPCOMMS_OK;
    int i, x;
    if (o.all ? n != 1 : n < 3) return usage("give FROM and TO, or --all", NULL);
    for (i = 1; i < n; i++) {
        if (!rule_end(arg[i], &id)) return usage("not HASH:ID or HASH:~", arg[i]);
    }
    x = change_list(arg[0], 1, 1);
    if (x != END_OK) return x;
    for (i = 2; i < n && rc == OPCOMMS_OK; i++) {
        rc = opcomms_routing_table_add(routes, arg[1], arg[i]);
    }
    return save_list(arg[0], 1, rc);
}

static int cmd_route_remove(int n, char **arg) {
    opcomms_err rc = OPCOMMS_OK;
    int i, x;
    if (o.all ? n != 1 : n < 2 && o.to == NULL) return usage("give FROM, --to TO or --all", NULL);
    if (o.to != NULL && n > 1) return usage("give FROM and TO, or --to alone", NULL);
    x = change_list(arg[0], 1, 0);
    if (x != END_OK) return x;
    if (o.to != NULL) rc = opcomms_routing_table_remove_all_to(routes, o.to);
    if (n == 2) rc = opcomms_routing_table_remove_all_from(routes, arg[1]);
    for (i = 2; i < n && rc == OPCOMMS_OK; i++) {
        rc = opcomms_routing_table_remove(routes, arg[1], arg[i]);
    }
    return save_list(arg[0], 1, rc);
}

/* Does one end of a rule match an identifier? */
static int matches(const char *text, const opcomms_identifier *id) {
    opcomms_identifier rule;
    return opcomms_route_identifier_parse(text, &rule) == OPCOMMS_OK &&
           strcmp(rule.hash, id->hash) == 0 && (rule.id == OPCOMMS_ANY_ID || rule.id == id->id);
}

/* Which rule lets it pass, or how far the nearest one goes? */
static int routed(const opcomms_identifier *from, const opcomms_identifier *to, char *why,
                  size_t cap) {
    static char a[ENTRY_MAX], b[ENTRY_MAX];
    size_t i, sources = 0;
    if (opcomms_routing_table_is_all(routes)) {
        snprintf(why, cap, "the routing table says allow_all");
        return 1;
    }
    for (i = 0; opcomms_routing_table_entry(routes, i, a, b, ENTRY_MAX) == OPCOMMS_OK; i++) {
        if (b[0] == 0 || !matches(a, from)) continue;
        sources++;
        if (!matches(b, to)) continue;
        snprintf(why, cap, "the rule %.160s -> %.160s permits it", a, b);
        return 1;
    }
    if (sources == 0) {
        snprintf(why, cap, "no rule begins with the sender");
    } else {
        snprintf(why, cap, "of the %llu rules for the sender none leads there",
                 (unsigned long long)sources);
    }
    return 0;
}

/* May FROM send to TO, at the server whose files these are? */
static int cmd_route_check(int n, char **arg) {
    opcomms_identifier from, to;
    opcomms_error err;
    opcomms_err rc;
    char why[900], more[400] = "";
    int x, yes;
    (void)n;
    if (!parse_whom(arg[1], &from, NULL)) return usage("not HASH or HASH:ID", arg[1]);
    if (!parse_whom(arg[2], &to, NULL)) return usage("not HASH or HASH:ID", arg[2]);
    x = load_list(arg[0], 1, 0);
    if (x == END_OK && o.allow != NULL) {
        rc = opcomms_allow_list_load(allow, o.allow, &err);
        x = rc != OPCOMMS_OK ? failed(o.allow, rc, &err) : END_OK;
        if (x == END_OK && !admits(from.hash, more, sizeof more)) {
            snprintf(why, sizeof why, "the sender cannot connect: %s", more);
            return close_peer(answer(0, END_NOT_ALLOWED, why));
        }
    }
    if (x == END_OK) {
        yes = routed(&from, &to, why, sizeof why - sizeof more);
        if (yes != opcomms_routing_table_can_route(routes, &from, &to)) abort();
        if (more[0] != 0) {
            strcat(why, "; ");
            strcat(why, more);
        }
        x = answer(yes, END_ROUTE, why);
    }
    return close_peer(x);
}

/* ---- the log --------------------------------------------------------------------------------- */

static void print_time(const char *name, int64_t t) {
    struct tm tm;
    char text[32];
    time_t when = (time_t)t;
    if (gmtime_r(&when, &tm) == NULL) return;
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (o.json) {
        json_text(name, text);
    } else {
        printf("%s", text);
    }
}

static void print_report(const opcomms_log_report *r, opcomms_err rc, const char *file) {
    const struct { const char *name, *label; uint64_t v; } rows[] = {
        {"bytes", "bytes in the file", r->bytes},
        {"synced", "on the disk at least up to", r->synced},
        {"opened", "times opened", r->opened},
        {"batches", "batches", r->batches},
        {"messages", "messages", r->messages},
        {"acknowledged", "  acknowledged", r->acknowledged},
        {"unread", "  unread", r->unread},
        {"unread_bytes", "    with bytes", r->unread_bytes},
        {"salvaged", "    in damaged parts", r->salvaged},
        {"broken", "  broken", r->broken},
        {"number_last", "last number", r->number_last},
        {"tail_bytes", "bytes of unfinished writes", r->tail_bytes},
        {"bad_parts", "damaged parts", r->bad_parts},
        {"bad_bytes", "  bytes in them", r->bad_bytes},
        {"bad_at", "  the first at", r->bad_at}};
    size_t i;
    if (o.json) {
        json_begin(stdout);
        json_bool("ok", rc == OPCOMMS_OK);
        json_text("file", file);
        json_text("hash", r->hash);
        json_bool("in_use", (r->flags & OPCOMMS_REPORT_IN_USE) != 0);
        json_bool("closed", (r->flags & OPCOMMS_REPORT_CLOSED) != 0);
        json_bool("new", (r->flags & OPCOMMS_REPORT_NEW) != 0);
        json_bool("header_damaged", (r->flags & OPCOMMS_REPORT_HEADER) != 0);
        for (i = 0; i < sizeof rows / sizeof rows[0]; i++) json_number(rows[i].name, rows[i].v);
        if (r->major != 0) print_time("created", r->created_s);
        json_end();
        return;
    }
    printf("of the key  %s\n", r->hash[0] ? r->hash : "(nothing is in it yet)");
    printf("format      %d.%d, created ", r->major, r->minor);
    if (r->major != 0) print_time("", r->created_s);
    printf("\nstate       %s%s\n",
           (r->flags & OPCOMMS_REPORT_IN_USE)   ? "a peer has it open now"
           : (r->flags & OPCOMMS_REPORT_CLOSED) ? "closed"
                                                : "not closed by its last peer",
           (r->flags & OPCOMMS_REPORT_HEADER) ? "; one copy of its header is damaged" : "");
    for (i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        printf("%12llu  %s\n", (unsigned long long)rows[i].v, rows[i].label);
    }
}

static int cmd_log_verify(int n, char **arg) {
    opcomms_log_report r;
    opcomms_error err;
    opcomms_err rc;
    (void)n;
    memset(&r, 0, sizeof r);
    r.size = sizeof r;
    rc = opcomms_log_verify(arg[0], &r, &err);
    if (r.bytes > 0 || rc == OPCOMMS_OK) print_report(&r, rc, arg[0]);
    if (rc != OPCOMMS_OK) return failed(arg[0], rc, &err);
    if (!o.json) printf("good: everything in it checks\n");
    return END_OK;
}

static const char *const states[] = {"unread", "acknowledged", "salvaged", "broken"};

static int print_entry(void *user, const opcomms_log_entry *e) {
    static char *buf;
    size_t at = 0, got = 1, size = e->bytes <= BYTES_MAX ? (size_t)e->bytes : 0;
    (void)user;
    if (o.unread && e->state == OPCOMMS_ENTRY_ACKNOWLEDGED) return 0;
    if (o.payload && buf == NULL) buf = (char *)malloc(BYTES_MAX);
    while (o.payload && buf != NULL && at < size && got > 0 &&
           opcomms_log_entry_read(e, at, buf + at, size - at, &got) == OPCOMMS_OK) {
        at += got;
    }
    if (o.json) {
        json_begin(stdout);
        json_number("number", e->number);
        json_text("state", states[e->state]);
        json_text("from", e->from.hash);
        json_signed("from_id", e->from.id);
        json_data("to", e->to, e->to_len);
        json_number("to_id", e->to_id);
        json_text("kind", (e->flags & OPCOMMS_MESSAGE_TEXT) ? "text" : "bytes");
        json_number("bytes", e->bytes);
        json_number("offset", e->offset);
        print_time("stored", e->time_s);
        if (o.payload && at == e->bytes) json_data("text", buf != NULL ? buf : "", at);
        json_end();
    } else {
        printf("%llu %s ", (unsigned long long)e->number, states[e->state]);
        print_time("", e->time_s);
        printf(" %s:%d -> ", e->from.hash, e->from.id);
        print_safe(stdout, e->to, e->to_len);
        printf(":%d %llu bytes%s", e->to_id, (unsigned long long)e->bytes,
               o.payload ? ": " : "\n");
        if (o.payload && at == e->bytes && buf != NULL) print_safe(stdout, buf, at);
        if (o.payload) printf("\n");
    }
    return ferror(stdout);
}

static int cmd_log_dump(int n, char **arg) {
    opcomms_error err;
    opcomms_err rc = opcomms_log_dump(arg[0], print_entry, NULL, &err);
    (void)n;
    return rc == OPCOMMS_OK ? END_OK : failed(arg[0], rc, &err);
}

/* Counts for each mailbox. */
#define BOXES_MAX 4096
static struct box {
    char to[65]; /* longer texts are no identities: all under one name */
    int id;
    uint64_t unread, bytes, broken;
    int64_t oldest;
} boxes[BOXES_MAX];
static size_t boxes_count;

static int count_entry(void *user, const opcomms_log_entry *e) {
    char to[65] = "(others)";
    size_t i;
    (void)user;
    if (e->state == OPCOMMS_ENTRY_ACKNOWLEDGED) return 0;
    if (e->to_len == 64 && boxes_count < BOXES_MAX - 1) {
        memcpy(to, e->to, 64);
        to[64] = 0;
        if (!is_hash(to, 64)) strcpy(to, "(others)");
    }
    for (i = 0; i < boxes_count; i++) {
        if (boxes[i].id == e->to_id && strcmp(boxes[i].to, to) == 0) break;
    }
    if (i == BOXES_MAX) i--;
    if (i == boxes_count) {
        boxes_count++;
        strcpy(boxes[i].to, to);
        boxes[i].id = e->to_id;
        boxes[i].oldest = e->time_s;
    }
    boxes[i].unread += e->state != OPCOMMS_ENTRY_BROKEN;
    boxes[i].broken += e->state == OPCOMMS_ENTRY_BROKEN;
    boxes[i].bytes += e->bytes;
    if (e->time_s < boxes[i].oldest) boxes[i].oldest = e->time_s;
    return 0;
}

static int cmd_log_stats(int n, char **arg) {
    opcomms_log_report r;
    opcomms_error err;
    opcomms_err rc;
    size_t i;
    (void)n;
    memset(&r, 0, sizeof r);
    r.size = sizeof r;
    rc = opcomms_log_verify(arg[0], &r, &err);
    if (r.bytes > 0 || rc == OPCOMMS_OK) print_report(&r, rc, arg[0]);
    if (rc == OPCOMMS_OK || (rc == OPCOMMS_E_LOG_DAMAGED && r.major != 0)) {
        rc = opcomms_log_dump(arg[0], count_entry, NULL, &err);
    }
    for (i = 0; i < boxes_count; i++) {
        const struct box *b = &boxes[i];
        if (o.json) {
            json_begin(stdout);
            json_text("mailbox", b->to);
            json_signed("id", b->id);
            json_number("unread", b->unread);
            json_number("broken", b->broken);
            json_number("bytes", b->bytes);
            print_time("oldest", b->oldest);
            json_end();
        } else {
            printf("mailbox %s:%d  %llu unread, %llu bytes, oldest ", b->to, b->id,
                   (unsigned long long)b->unread, (unsigned long long)b->bytes);
            print_time("", b->oldest);
            printf("\n");
        }
    }
    return rc == OPCOMMS_OK ? END_OK : failed(arg[0], rc, &err);
}

static int cmd_log_repair(int n, char **arg) {
    opcomms_log_report r;
    opcomms_error err;
    opcomms_err rc;
    (void)n;
    memset(&r, 0, sizeof r);
    r.size = sizeof r;
    rc = opcomms_log_repair(arg[0], arg[1], &r, &err);
    if (rc != OPCOMMS_OK) return failed(arg[0], rc, &err);
    if (o.json) {
        json("ok:b file:s saved:u saved_bytes:u salvaged:u broken:u bad_parts:u bad_bytes:u",
             r.broken == 0, arg[1], (uint64_t)r.unread, (uint64_t)r.unread_bytes,
             (uint64_t)r.salvaged, (uint64_t)r.broken, (uint64_t)r.bad_parts,
             (uint64_t)r.bad_bytes);
    } else {
        printf("%llu unread messages are in %s, %llu of them out of damaged parts\n",
               (unsigned long long)r.unread, arg[1], (unsigned long long)r.salvaged);
        printf("%llu messages are broken and not in it; %llu damaged bytes in %llu parts\n",
               (unsigned long long)r.broken, (unsigned long long)r.bad_bytes,
               (unsigned long long)r.bad_parts);
        printf("%s is as it was; to go on, move it away and give the new one its name\n", arg[0]);
    }
    return r.broken == 0 ? END_OK : END_LOG;
}

/* ---- the outbox ------------------------------------------------------------------------------ */

static int enqueue_one(const void *data, size_t len) {
    opcomms_enqueue_options opt;
    opcomms_error err;
    opcomms_err rc;
    uint64_t number = 0;
    char what[64];
    memset(&opt, 0, sizeof opt);
    opt.size = sizeof opt;
    opt.flags = (o.text ? OPCOMMS_ENQUEUE_TEXT : 0) | (o.native ? OPCOMMS_ENQUEUE_NATIVE_ONLY : 0);
    opt.attempts_max = o.attempts;
    opt.expiry_s = o.expiry;
    opt.from_id = (uint8_t)o.from_id;
    rc = opcomms_enqueue(peer, &out.to, out.address[0] != 0 ? out.address : NULL, o.context,
                         o.context != NULL ? strlen(o.context) : 0, data, len, &opt, &number, &err);
    out.sent++;
    if (rc != OPCOMMS_OK) {
        snprintf(what, sizeof what, "message %llu", (unsigned long long)out.sent);
        return failed(what, rc, &err);
    }
    if (o.json) {
        json("ok:b number:u bytes:u", 1, number, (uint64_t)len);
    } else {
        printf("%llu\n", (unsigned long long)number);
    }
    return END_OK;
}

static int cmd_enqueue(int n, char **arg) {
    int x;
    if (o.to == NULL) return usage("--to is needed", NULL);
    x = too_many_inputs(n);
    if (x != END_OK) return x;
    if (!parse_whom(o.to, &out.to, strchr(o.to, '@') != NULL ? out.address : NULL)) {
        return usage("not HASH[:ID][@IP:PORT]", o.to);
    }
    x = open_quiet(out.to.hash, 1, 0);
    if (x == END_OK) x = send_inputs(n, arg, enqueue_one);
    return close_peer(x);
}

/* A message of the outbox, or a dead letter. */
static int print_queued(const opcomms_queued *q, char *buf) {
    const char *state = q->state == OPCOMMS_STATE_DEAD ? "dead" : "queued";
    size_t at = 0, got = 1;
    opcomms_err rc = q->bytes > BYTES_MAX ? OPCOMMS_E_LIMIT : OPCOMMS_OK;
    while (rc == OPCOMMS_OK && o.payload && at < q->bytes && got > 0) {
        rc = opcomms_queued_read(peer, q->number, at, buf + at, (size_t)q->bytes - at, &got);
        at += got;
    }
    if (o.payload && rc != OPCOMMS_OK) return failed("payload", rc, NULL);
    if (o.json) {
        json_begin(stdout);
        json_number("number", q->number);
        json_text("state", state);
        json_number("from_id", q->from_id);
        json_text("to", q->to.hash);
        json_signed("to_id", q->to.id);
        json_number("bytes", q->bytes);
        json_number("attempts", q->attempts);
        if (q->code != OPCOMMS_OK) json_text("error", name_of(q->code));
        json_bool("uncertain", q->uncertain != 0);
        print_time("queued", q->time_s);
        if (q->expires_s != 0) print_time("expires", q->expires_s);
        if (q->dead_s != 0) print_time("dead", q->dead_s);
        if (q->context_len > 0) json_data("context", q->context, q->context_len);
        if (o.payload) json_data("text", buf, at);
        json_end();
        return END_OK;
    }
    printf("%llu %s ", (unsigned long long)q->number, state);
    print_time("", q->dead_s != 0 ? q->dead_s : q->time_s);
    printf(" -> %s:%d %llu bytes, %u attempts", q->to.hash, q->to.id, (unsigned long long)q->bytes,
           (unsigned)q->attempts);
    if (q->code != OPCOMMS_OK) printf(" (%s)", opcomms_err_text(q->code));
    if (q->uncertain) printf(", may have arrived");
    if (q->context_len > 0) printf(", context ");
    print_safe(stdout, q->context, q->context_len);
    if (o.payload) printf(": ");
    if (o.payload) print_safe(stdout, buf, at);
    printf("\n");
    return END_OK;
}

static int list_queued(opcomms_err (*next)(opcomms_peer *, uint64_t, opcomms_queued *)) {
    static opcomms_queued q;
    char *buf = (char *)malloc(BYTES_MAX);
    int x = buf == NULL ? no_memory() : open_quiet(NULL, 1, 1);
    while (x == END_OK && !ferror(stdout) && next(peer, q.number, &q) == OPCOMMS_OK) {
        x = print_queued(&q, buf);
    }
    free(buf);
    return close_peer(x);
}

static int cmd_outbox(int n, char **arg) {
    (void)n;
    (void)arg;
    return list_queued(opcomms_queued_next);
}
static int cmd_dead(int n, char **arg) {
    (void)n;
    (void)arg;
    return list_queued(opcomms_dead_next);
}

/* One call for each number that is named; *fresh is told when it is not 0. */
static int each_number(int n, char **arg, opcomms_err (*call)(uint64_t, uint64_t *,
                                                              opcomms_error *)) {
    int i, x = END_OK;
    for (i = 0; i < n; i++) {
        if (arg[i][0] == 0 || strlen(arg[i]) > 19 || strspn(arg[i], "0123456789") < strlen(arg[i]))
            return usage("not a number", arg[i]);
    }
    x = open_quiet(NULL, 1, 1);
    for (i = 0; i < n && x == END_OK; i++) {
        uint64_t number = strtoull(arg[i], NULL, 10), fresh = 0;
        opcomms_error err;
        opcomms_err rc = call(number, &fresh, &err);
        if (rc != OPCOMMS_OK) {
            x = failed(arg[i], rc, &err);
        } else if (o.json) {
            json(fresh != 0 ? "ok:b number:u fresh:u" : "ok:b number:u", 1, number, fresh);
        } else if (fresh != 0) {
            printf("%llu\n", (unsigned long long)fresh);
        }
    }
    return close_peer(x);
}

static opcomms_err call_cancel(uint64_t number, uint64_t *fresh, opcomms_error *err) {
    (void)fresh;
    return opcomms_cancel(peer, number, err);
}
static opcomms_err call_drop(uint64_t number, uint64_t *fresh, opcomms_error *err) {
    (void)fresh;
    return opcomms_dead_drop(peer, number, err);
}
static opcomms_err call_requeue(uint64_t number, uint64_t *fresh, opcomms_error *err) {
    return opcomms_dead_requeue(peer, number, fresh, err);
}
static int cmd_cancel(int n, char **arg) { return each_number(n, arg, call_cancel); }
static int cmd_drop(int n, char **arg) { return each_number(n, arg, call_drop); }
static int cmd_requeue(int n, char **arg) { return each_number(n, arg, call_requeue); }

/* One event. Returns the exit code of what is lost, or END_OK. */
static int print_event(const opcomms_event *e) {
    const char *what = e->state == OPCOMMS_STATE_DURABLE || e->state == OPCOMMS_STATE_CONSUMED
                           ? "delivered"
                       : e->state == OPCOMMS_STATE_DEAD     ? "dead"
                       : e->state == OPCOMMS_STATE_ROLLBACK ? "rollback"
                                                            : NULL;
    if (what == NULL) return END_OK;
    if (o.json) {
        json("ok:b event:s number:u to:s error:s", e->code == OPCOMMS_OK, what, e->number, e->to,
             name_of(e->code));
    } else if (e->state == OPCOMMS_STATE_ROLLBACK) {
        printf("stopped to %s: %s\n", e->to, opcomms_err_text(e->code));
    } else {
        printf("%llu %s to %s%s%s\n", (unsigned long long)e->number, what, e->to,
               e->code != OPCOMMS_OK ? ": " : "",
               e->code != OPCOMMS_OK ? opcomms_err_text(e->code) : "");
    }
    fflush(stdout);
    return exit_of(e->code);
}

static int cmd_deliver(int n, char **arg) {
    opcomms_config cfg;
    uint64_t start = now_us();
    int x = begin_config(&cfg), lost = END_OK, time_up = 0;
    (void)n;
    (void)arg;
    if (x == END_OK) x = serve_config(&cfg);
    cfg.flags |= OPCOMMS_NO_LISTEN | OPCOMMS_NO_BACKGROUND;
    if (x == END_OK) x = open_peer(&cfg);
    catch_signals();
    while (x == END_OK && !end_asked && !time_up) {
        opcomms_event e;
        opcomms_err rc = opcomms_poll(peer, 50);
        if (rc != OPCOMMS_OK) x = failed(NULL, rc, NULL);
        memset(&e, 0, sizeof e);
        while (opcomms_next_event(peer, 0, &e) == OPCOMMS_OK) {
            int code = print_event(&e);
            if (code != END_OK) lost = code;
        }
        if (opcomms_queued_count(peer, NULL) == 0) break;
        time_up = o.within != 0 && now_us() - start >= (uint64_t)o.within * 1000000u;
    }
    if (x == END_OK && opcomms_queued_count(peer, NULL) > 0) {
        char what[64];
        snprintf(what, sizeof what, "%llu messages wait",
                 (unsigned long long)opcomms_queued_count(peer, NULL));
        x = failed(what, OPCOMMS_E_TIMEOUT, NULL);
    }
    return close_peer(x == END_OK || lost != END_OK ? lost : x);
}

static int cmd_accept_rollback(int n, char **arg) {
    opcomms_error err;
    opcomms_err rc;
    int x;
    (void)n;
    if (!is_hash(arg[0], strlen(arg[0]))) return usage("not a hash", arg[0]);
    x = open_quiet(NULL, 1, 1);
    rc = x == END_OK ? opcomms_accept_rollback(peer, arg[0], &err) : OPCOMMS_OK;
    if (rc != OPCOMMS_OK) x = failed("a rollback with that peer", rc, &err);
    if (x == END_OK && o.json) json("ok:b hash:s", 1, arg[0]);
    return close_peer(x);
}

/* ---- commands -------------------------------------------------------------------------------- */

static const struct command {
    const char *name;
    int (*run)(int n, char **arg);
    int least, most; /* arguments; most -1: any number */
    const char *options;
    const char *usage;
    const char *help;
    const char *example;
} commands[] = {
    {"keygen", cmd_keygen, 1, 1, "type password", "FILE",
     "Makes a private key and prints its hash, the identity. An existing file is never\n"
     "overwritten. With --password the key is encrypted.",
     "opcomms keygen alice.key --type rsa2048"},
    {"passwd", cmd_passwd, 1, 1, "none", "KEY",
     "Writes a private key anew under another password, or under none (--none). The new one is\n"
     "the content of the file that OPCOMMS_NEW_PASSWORD_FILE names, or is asked for.",
     "opcomms passwd alice.key"},
    {"hash", cmd_hash, 1, -1, "", "FILE...",
     "Prints the public key hash of private keys or certificates.", "opcomms hash alice.key"},
    {"cert", cmd_cert, 0, 1, "ca out ca-cert", "KEY",
     "Prints the certificate a peer with this key shows, PEM.", "opcomms cert alice.key"},
    {"serve", cmd_serve, 0, 0,
     "key config ca listen allow routes log durability protocol mailboxes id count keep raw", "",
     "Listens, prints and acknowledges what arrives, and delivers what the outbox holds, until\n"
     "SIGINT or SIGTERM, or until --count messages came. SIGHUP reads the lists again from their\n"
     "files. With --keep nothing is taken: a mailbox server whose clients fetch; --mailboxes\n"
     "opens it to third parties.",
     "opcomms serve --key bob.key --listen 127.0.0.1:9002 --allow allow.yaml "
     "--routes routes.yaml"},
    {"send", cmd_send, 0, -1, "key config ca to server from-id file lines text timeout",
     "[MESSAGE...]",
     "Sends each MESSAGE, or the content of --file, or all of standard input, or each of its\n"
     "lines, and ends when the receiver has stored it. The first failure ends it. With\n"
     "--server the mail is put into mailbox --to HASH:ID at that server.",
     "opcomms send --key alice.key --to $BOB@127.0.0.1:9002 \"hello bob\""},
    {"recv", cmd_recv, 0, 0, "key config ca server log id max wait timeout keep raw", "",
     "Takes messages out of our mailbox at a server (--server), or out of our own log while its\n"
     "peer is not running (--log). A message is acknowledged when it is printed. --keep leaves\n"
     "it: of a server the oldest is shown, of a log up to 64.",
     "opcomms recv --key alice.key --server $BOB@127.0.0.1:9002 --max 0"},
    {"ping", cmd_ping, 1, 1, "key config ca count timeout", "HASH@IP:PORT",
     "Asks whether a peer answers, and whether it has that key.",
     "opcomms ping --key alice.key $BOB@127.0.0.1:9002"},
    {"allow list", cmd_allow_list, 1, 1, "", "FILE", "Lists who is admitted.",
     "opcomms allow list allow.yaml"},
    {"allow add", cmd_allow_add, 1, -1, "ip all", "FILE HASH|KEY|CERTIFICATE...",
     "Admits identities, from --ip only when it is given. Writes the file in one step, makes it\n"
     "when it is missing; comments in it are lost. A running `serve` reads it at SIGHUP.",
     "opcomms allow add allow.yaml $ALICE --ip 127.0.0.1"},
    {"allow remove", cmd_allow_remove, 1, -1, "all", "FILE HASH...",
     "Admits identities no longer. --all takes the word allow_all away.",
     "opcomms allow remove allow.yaml $ALICE"},
    {"allow check", cmd_allow_check, 2, 2, "ip", "FILE HASH", "May it connect, and why?",
     "opcomms allow check allow.yaml $ALICE --ip 127.0.0.1"},
    {"route list", cmd_route_list, 1, 1, "", "FILE", "Lists who may send what to whom.",
     "opcomms route list routes.yaml"},
    {"route add", cmd_route_add, 1, -1, "all", "FILE FROM TO...",
     "Permits messages from FROM to each TO, both HASH:ID or HASH:~ for all mailboxes.",
     "opcomms route add routes.yaml $ALICE:0 $BOB:~"},
    {"route remove", cmd_route_remove, 1, -1, "to all", "FILE [FROM [TO...]]",
     "Takes rules away: exactly those, all of FROM, or all to --to. --all takes the word\n"
     "allow_all away.",
     "opcomms route remove routes.yaml $ALICE:0"},
    {"route check", cmd_route_check, 3, 3, "allow ip", "FILE FROM TO",
     "May FROM send to TO at the server with this file, and why? With --allow, may it connect?",
     "opcomms route check routes.yaml $ALICE:0 $BOB:0 --allow allow.yaml"},
    {"enqueue", cmd_enqueue, 0, -1,
     "key config log to from-id file lines text context attempts expiry native-only",
     "[MESSAGE...]",
     "Queues each MESSAGE, or the content of --file, or all of standard input, or each of its\n"
     "lines, in our log while its peer is not running, and prints their numbers. They are\n"
     "delivered by `deliver` or `serve`, to --to HASH[:ID]@IP:PORT; without an address when that\n"
     "peer connects to us.",
     "opcomms enqueue --key alice.key --log alice.log --to $BOB@127.0.0.1:9002 \"hello bob\""},
    {"deliver", cmd_deliver, 0, 0, "key config ca log allow routes within", "",
     "Delivers what the outbox holds, in order, again and again until nothing is left or --within\n"
     "is over. Ends with the code of the last message that became a dead letter, if one did.\n"
     "Runs our peer as `serve` does, without listening.",
     "opcomms deliver --key alice.key --log alice.log --allow allow.yaml --routes routes.yaml"},
    {"outbox", cmd_outbox, 0, 0, "key config log payload", "", "Lists what is to be delivered.",
     "opcomms outbox --key alice.key --log alice.log"},
    {"cancel", cmd_cancel, 1, -1, "key config log", "NUMBER...",
     "Takes messages out of the outbox. Exit code 8: it is out, but was sent before.",
     "opcomms cancel --key alice.key --log alice.log 17"},
    {"dead", cmd_dead, 0, 0, "key config log payload", "",
     "Lists the dead letters: what was refused for good, expired or ran out of attempts.",
     "opcomms dead --key alice.key --log alice.log --payload"},
    {"requeue", cmd_requeue, 1, -1, "key config log", "NUMBER...",
     "Puts dead letters back into the outbox, behind all others, and prints their new numbers.",
     "opcomms requeue --key alice.key --log alice.log 17"},
    {"drop", cmd_drop, 1, -1, "key config log", "NUMBER...", "Ends dead letters.",
     "opcomms drop --key alice.key --log alice.log 17"},
    {"accept-rollback", cmd_accept_rollback, 1, 1, "key config log", "HASH",
     "Goes on with a peer although its log or ours was replaced by an older copy, which was\n"
     "reported. Messages may come twice then. The other side may have to do the same.",
     "opcomms accept-rollback --key alice.key --log alice.log $BOB"},
    {"log verify", cmd_log_verify, 1, 1, "", "FILE",
     "Checks everything in a log and reports. Changes nothing; a peer may be running.",
     "opcomms log verify bob.log"},
    {"log dump", cmd_log_dump, 1, 1, "payload unread", "FILE",
     "Lists the messages in a log, those acknowledged too as long as they are in the file.",
     "opcomms log dump bob.log --unread"},
    {"log stats", cmd_log_stats, 1, 1, "", "FILE", "Counts what is in a log, by mailbox.",
     "opcomms log stats bob.log --json"},
    {"log repair", cmd_log_repair, 2, 2, "", "FILE NEW",
     "Saves everything unread that is valid from a damaged log into a new one. The old file is\n"
     "not changed.",
     "opcomms log repair bob.log bob-new.log"},
    {"drain", cmd_drain, 0, 0, "key config ca log from id all-ids timeout", "",
     "Moves our mail from a server (Rust or C) into our own log, senders and order kept, before\n"
     "we serve ourselves. Each message is acknowledged there when it is durable here. Our peer\n"
     "must not be running.",
     "opcomms drain --key alice.key --log alice.log --from $SERVER@127.0.0.1:9001"},
};

#define COMMANDS (sizeof commands / sizeof commands[0])

static int has_word(const char *list, const char *word) {
    size_t n = strlen(word);
    const char *p = list;
    while ((p = strstr(p, word)) != NULL) {
        if ((p == list || p[-1] == ' ') && (p[n] == 0 || p[n] == ' ')) return 1;
        p += n;
    }
    return 0;
}

static void help_all(void) {
    size_t i;
    printf("opcomms %s - messages between operators\n\nusage: opcomms COMMAND [OPTION]... "
           "[ARGUMENT]...\n\n", opcomms_version());
    for (i = 0; i < COMMANDS; i++) {
        size_t line = strcspn(commands[i].help, "\n");
        printf("  %-15s %.*s\n", commands[i].name, (int)line, commands[i].help);
    }
    printf("\nEvery command takes --help and --json (one JSON object a line). \"--\" ends the "
           "options.\nThe password of an encrypted key is the content of the file that "
           "OPCOMMS_PASSWORD_FILE\nnames, or is asked for on the terminal.\n\n%s", exit_help);
}

static void help_one(const struct command *c) {
    size_t i;
    printf("usage: opcomms %s [OPTION]... %s\n\n%s\n\n", c->name, c->usage, c->help);
    for (i = 0; i < OPTS; i++) {
        if (i >= 2 && !has_word(c->options, opts[i].name)) continue;
        printf("  --%-11s %s\n", opts[i].name, opts[i].help);
    }
    printf("\nExample:\n  %s\n\n%s", c->example, exit_help);
}

/* Decimal digits, at most `most`. */
static int number(const char *s, uint32_t most, uint32_t *v) {
    uint64_t n = 0;
    if (*s == 0) return 0;
    for (; *s != 0; s++) {
        if (*s < '0' || *s > '9') return 0;
        n = n * 10 + (uint64_t)(*s - '0');
        if (n > most) return 0;
    }
    *v = (uint32_t)n;
    return 1;
}

/* An address counts as one when a list takes it. */
static int is_ip(const char *text) {
    static const char any[] = "0000000000000000000000000000000000000000000000000000000000000000";
    opcomms_allow_list *list = NULL;
    int ok = opcomms_allow_list_new(NULL, &list) == OPCOMMS_OK &&
             opcomms_allow_list_add(list, any, text) == OPCOMMS_OK;
    opcomms_allow_list_release(list);
    return ok;
}

/* One option at arg[*i]; its value may be the next argument or stand behind "=". */
static int option(const struct command *c, char **arg, int n, int *i) {
    char name[16];
    const char *text = arg[*i] + 2, *value = strchr(text, '=');
    size_t len = value != NULL ? (size_t)(value - text) : strlen(text), k;
    if (len >= sizeof name) return usage("no such option", arg[*i]);
    memcpy(name, text, len);
    name[len] = 0;
    for (k = 0; k < OPTS && strcmp(opts[k].name, name) != 0; k++) continue;
    if (k == OPTS || (k >= 2 && !has_word(c->options, name))) {
        return usage("no such option of this command", arg[*i]);
    }
    if (opts[k].kind == FLAG) {
        if (value != NULL) return usage("this option takes no value", arg[*i]);
        *(int *)opts[k].where = 1;
        return END_OK;
    }
    if (value != NULL) {
        value++;
    } else if (*i + 1 < n) {
        value = arg[++*i];
    } else {
        return usage("a value is missing", arg[*i]);
    }
    if (opts[k].kind == WORD) {
        *(const char **)opts[k].where = value;
    } else if (!number(value, opts[k].most, (uint32_t *)opts[k].where)) {
        return usage("not a number in range", value);
    }
    if (opts[k].where == &o.max) o.max_set = 1;
    if (opts[k].where == &o.ip && !is_ip(value)) return usage("not an IP address", value);
    return END_OK;
}

static const struct command *find_command(int n, char **arg, int *used) {
    size_t i;
    for (i = 0; i < COMMANDS; i++) {
        const char *name = commands[i].name, *space = strchr(name, ' ');
        *used = space != NULL ? 2 : 1;
        if (space == NULL && strcmp(arg[1], name) == 0) return &commands[i];
        if (space != NULL && n > 2 && strlen(arg[1]) == (size_t)(space - name) &&
            memcmp(arg[1], name, strlen(arg[1])) == 0 && strcmp(arg[2], space + 1) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    const struct command *c;
    int i, n = 0, used = 0, x = END_OK, plain = 0;
    if (argc < 2) return usage("give a command", NULL);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        help_all();
        return printed() ? END_OK : END_FAILED;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("opcomms %s\n", opcomms_version());
        return printed() ? END_OK : END_FAILED;
    }
    c = find_command(argc, argv, &used);
    if (c == NULL) return usage("no such command", argv[1]);
    command = c->name;
    for (i = 1 + used; i < argc && x == END_OK; i++) {
        if (!plain && strcmp(argv[i], "--") == 0) {
            plain = 1;
        } else if (!plain && strncmp(argv[i], "--", 2) == 0) {
            x = option(c, argv, argc, &i);
        } else {
            argv[1 + n++] = argv[i]; /* what is moved was read already */
        }
    }
    if (x != END_OK) return x;
    if (o.help) {
        help_one(c);
        return printed() ? END_OK : END_FAILED;
    }
    if (n < c->least || (c->most >= 0 && n > c->most)) {
        return usage(n < c->least ? "arguments are missing" : "too many arguments", NULL);
    }
    x = c->run(n, argv + 1);
    if (!printed() && x == END_OK) x = failed("standard output", OPCOMMS_E_IO, NULL);
    return x;
}
