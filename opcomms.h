/* SPDX-License-Identifier: MIT

opcomms.h 0.1.0 - authenticated, durable, peer-to-peer messaging in one C header

A program copies this file, links BearSSL, and has a peer: it listens on an address, knows who is on
the other end by the SHA-256 of their public key, accepts only whom its allow list names, moves only
what its routing table permits, and loses no message it has acknowledged, even when the power goes.
It speaks the wire protocol of the Rust system operator-comms (broker v0.5.0) in both directions,
and between peers of this library one of its own, which delivers exactly once.

CONTENTS OF THE MANUAL
     1  Use                       7  Wire protocol
     2  Example                   8  Log format
     3  Model                     9  Threads, lifetime, ownership
     4  Compile-time options     10  Errors
     5  Limits                   11  Security
     6  Files                    12  Porting

SECTIONS OF THE IMPLEMENTATION (search for ">>tag"; a section calls only sections above it)
     L0  cfg str err mem buf crc        base
     L1  posix plat thread              operating system
     L2  frame json bytes render fetch shape tarpc yaml der   codecs
     L2  key cert seal tls store ram log look native          keys, TLS, storage, own protocol
     L3  id allow route settings limit numbers conn items mailbox outbox peer flow node run
     L4  pub-access pub-key pub-log pub-settings pub          public functions

1  USE
    One C or C++ file of the program holds the implementation, and includes this header before any
    system header:
        #define OPCOMMS_IMPLEMENTATION
        #include "opcomms.h"
    All others include it plainly. Link with -lbearssl -lpthread. As an object file of its own:
        cc -x c -DOPCOMMS_IMPLEMENTATION -c opcomms.h -o opcomms.o

2  EXAMPLE
    examples/hello.c is the smallest whole program; tests/examples/run.sh compiles and runs it.
    In short:
        opcomms_config cfg;
        opcomms_config_init(&cfg);
        cfg.address = "127.0.0.1:9001";
        cfg.key_file = "operator.key";          -- PEM; opcomms_generate_key_file makes one
        cfg.allow = allow;                      -- opcomms_allow_list_load
        cfg.routes = routes;                    -- opcomms_routing_table_load
        opcomms_new(&cfg, &peer, &err);
        opcomms_send(peer, hash, "127.0.0.1:9002", "hello", 5, 0, &err);
        opcomms_receive(peer, 1000, &message, &err);
        opcomms_ack(message, &err);
        opcomms_free(peer);

3  MODEL
    identity    64 hex digits: SHA-256 of the DER SubjectPublicKeyInfo of a key. Nothing else
                identifies anybody: not an address, not a name in a certificate.
    identifier  an identity and a mailbox number 0..255, written "hash:id". opcomms_send goes from
                mailbox 0 to mailbox 0; opcomms_client_send and opcomms_receive_id name others.
    allow list  who may connect, and be connected to: identity, optionally with one IP address.
                allow_all lets everybody in, whom routing then still limits.
    routes      from (hash:id or hash:~) to a set of (hash:id or hash:~). Default: nothing passes.
    peer        listener, connections, log. A message for our own identity that passes both lists
                is stored, then acknowledged to its sender, then handed out, oldest first, until it
                is acknowledged by the program. Messages for other identities are refused unless
                cfg.mailboxes_max opts into keeping mail for third parties.
    send        opens or reuses one kept connection per (identity, address) and returns when the
                receiver has stored the message, or with the reason why not.
    outbox      opcomms_enqueue stores a message in our own log, returns, and delivers in the
                background: across restarts of both sides, again and again until the receiver has
                it. What ran out of attempts, expired, or was refused for good is a dead letter,
                which stays until the program drops it or queues it again. opcomms_next_event tells
                what became of each.
    stream      the messages of one sender mailbox to one destination. The outbox delivers each
                stream in the order of its calls. The receiver remembers the highest number that it
                has stored of a stream, together with the messages, and knows by that what comes
                again. Between native peers (7) that makes it exactly once: stored once, handed out
                until acknowledged. Towards the Rust system it is at least once, and a message that
                went both ways is marked OPCOMMS_MESSAGE_UNCERTAIN.
    commit      opcomms_commit acknowledges messages, queues others and replaces the program's state
                record in one operation: what a message has caused and its end are one.
    rollback    native peers know each other's logs by their openings. A log that was replaced by an
                older copy stops what the two exchange, and nothing else, until
                opcomms_accept_rollback: its numbers are used again, and would pass for duplicates.
    client      the broker channel: send to, get from and acknowledge in the mailboxes of any
                server, of this library or of the Rust system (opcomms_client_*). Components of
                the server's own process do the same without a network (opcomms_local_*).

    What is promised, and the test that holds it (tests/):
    - A message whose send returned OPCOMMS_OK survives a crash of the receiver, and with
      OPCOMMS_DURABLE_ALWAYS a power cut.                       unit/test_log.c, api/test_peer.c
    - Nothing is handed out under an identity whose key the TLS handshake did not prove.
                                                              api/test_basics.c, api/test_peer.c
    - The receiver's key is the one that was asked for, or nothing is sent.  api/test_basics.c
    - When opcomms_allow_list_remove has returned, nothing more from that key is stored and
      nothing more is sent to it; its connections close within one step.       api/test_peer.c
    - A message whose enqueue returned OPCOMMS_OK, with OPCOMMS_DURABLE_ALWAYS, is delivered, is a
      dead letter, or was cancelled, whatever crashes and whichever connection breaks; in order, and
      between native peers once.  api/test_delivery.c, sim/test_sim_delivery.c, crash/crash.c
    - A commit happens whole or not at all.          api/test_delivery.c, sim/test_sim_delivery.c
    - A log that was replaced by an older copy is found out before anything moves.
                                             unit/test_numbers_world.c, sim/test_sim_delivery.c
    - Compaction and backup keep all that is not over, whatever fails.
                                             unit/test_log_compact.c, unit/test_log_crash.c
    - An encrypted log shows no payload, identity or state, and no operation in it is changed or
      moved unnoticed.                                               unit/test_log_crypt.c
    - Peer and file bytes never crash it.                       fuzz/, unit tests under sanitizers
    Between a lost answer and a repeated opcomms_send a message can arrive twice, as OPCOMMS_E_
    UNKNOWN_OUTCOME says; opcomms_send_numbered and the outbox are for those who cannot have that.
    An acknowledgement by the program becomes durable with the next sync: after a crash the last
    message handed out may be handed out again, with its number.

4  COMPILE-TIME OPTIONS (define before the include; none changes a public struct)
    OPCOMMS_IMPLEMENTATION     compiles the implementation in this file
    OPCOMMS_STATIC             all functions are static: private to this file
    OPCOMMS_ASSERT(c)          default assert(c) from <assert.h>; only for bugs of the library
    OPCOMMS_NO_THREADS         no pthread: only peers with OPCOMMS_NO_BACKGROUND
    OPCOMMS_NO_LINUX           plain POSIX even on Linux
    OPCOMMS_NO_POSIX           no built-in platform: cfg.platform is required
    OPCOMMS_MAX_FRAME          largest frame and largest message, default 8 388 608 as in the
                               reference; up to 100 MiB
    OPCOMMS_NO_CRC_HARDWARE    CRC-32C by table only

5  LIMITS (defaults; fields of opcomms_config)
    frame                  8 MiB of JSON: 2 097 000 bytes of payload always fit, 4 MB of digits 0-9
    connections            64, a quarter of them kept for our own; 16 inbound per address
    handshakes             16 at once, 100 a second, half of that from one address; a quarter of
                           the places is kept for addresses that the allow list names
    requests               10 000 in a burst and 100 a second from one identity
    handshake time         10 s         idle time   300 s
    unread messages        100 000, 10 000 per sender and destination
    outbox                 100 000 messages, 256 MiB, 4 096 destinations
    retries                for ever, after 100 ms doubling to 10 s
    native                 message 8 MiB; 16 384 unacknowledged messages and 8 MiB of payload per
                           sender and destination, 16 384 such pairs remembered
    events kept            256          caller's state record   4 096 bytes
    log                    1 GiB        memory      64 MiB
    requests in flight     16 per inbound connection, further ones wait
    messages handed out    16 384
    list entries           65 536 per list
    What is over a limit is refused with an error; nothing that was accepted is dropped.

6  FILES
    key            PEM: PKCS#8, PKCS#1 or SEC1; RSA 2048 to 4096, EC P-256 or P-384. Under a
                   password: PKCS#8 with PBES2 alone, PBKDF2-HMAC-SHA256 of at most 10 000 000
                   iterations, salt of 8 to 64 bytes, AES-256-CBC (RFC 8018), as it is written by
                   openssl pkcs8 -topk8 -v2 aes-256-cbc
    allow list     YAML mapping  hash: ip | null     or the word allow_all
    routing table  YAML mapping  "hash:id": ["hash:id", "hash:~"]     or the word allow_all
    log            see 8; grows by as much again as it has, 64 KiB to 4 MiB at a time, of zeros;
                   beside it <log>.lock, held while a peer is open
    settings       YAML mapping, read by opcomms_settings_load; examples/operator.yaml has each key
        A key is a field of opcomms_config. None has to be there, none may be there twice:
            address                           "ip:port"; with IPv6 in quotes: "[::1]:9001"
            key_file ca_key_file log_path     paths; relative ones begin at the file's directory
            allow routes                      path of a list, or the list itself, or allow_all
            durability                        always, interval or never
            protocol                          v0.5.0 or newer
            memory_store no_listen no_resumption tarpc_only native_only encrypt_log
                                              true or false: bits of cfg.flags
            sync_interval_ms handshake_timeout_ms idle_timeout_ms send_timeout_ms
            retry_min_ms retry_max_ms         milliseconds
            frame_bytes_max log_bytes_max memory_bytes_max queued_bytes_max window_bytes
            message_bytes_max                 bytes
            connections_max connections_per_address handshakes_max handshakes_per_second
            messages_max queue_depth_max mailboxes_max rate_per_second rate_cost
            queued_max queued_per_destination_max destinations_max attempts_max
            window_messages streams_max       numbers
            rate_capacity                     number, or unlimited
        The groups of the reference's settings are understood as well, for the same fields:
            rate_limiter_config   rate_limit_capacity, rate_limit_refill_rate, tokens_per_message:
                                  rate_capacity, rate_per_second, rate_cost
            msg_size_config       max_frame_size_kb: frame_bytes_max in units of 1 024
            queue_config          max_queue_depth: queue_depth_max
            broker_node_config    max_send_attempts, retry_min_delay_msecs, retry_max_delay_msecs:
                                  attempts_max, retry_min_ms, retry_max_ms;
                                  max_msgs_per_tick_utilization: checked, and not used
        Numbers are decimal, without quotes, within the ranges of opcomms_new; 0 is allowed where
        it is a value (mailboxes_max; attempts_max: for ever), and refused where cfg means the
        default by it. What contradicts an earlier key is refused at the later one. What the
        program decides (NO_BACKGROUND, allocator, platform, callbacks) has no key. Everything is
        read before anything takes effect, and what is wrong is named with its line.

7  WIRE PROTOCOL
    TCP, and TLS 1.2 with certificates on both sides. Who connects offers the ALPN protocol
    "opcomms/1"; when the other side chooses it, both speak the native protocol, which is written
    out byte by byte at the top of section >>native: binary frames, channels with windows,
    cumulative acknowledgements; tests/data/native holds a frame of each kind. Otherwise, and on the
    broker channel always, it is that of the Rust system, below. OPCOMMS_TARPC_ONLY and
    OPCOMMS_NATIVE_ONLY leave one of them out.
    Frames of the Rust system: length (32 bits, big-endian, 1 to 8 388 608), then one JSON document.
    The documents are those of tarpc 0.37:
        {"Request":{"context":{"deadline":{"secs":S,"nanos":N},"trace_context":{"trace_id":[16
         numbers],"span_id":U,"sampling_decision":"Unsampled"}},"id":I,"message":MSG}}
        {"Cancel":{"trace_context":{...},"request_id":I}}
        {"request_id":I,"message":{"Ok":RESULT}}
        {"request_id":I,"message":{"Err":{"kind":K,"detail":T}}}
    MSG     {"Send":{"from_id":0,"dest":{"pubkey_hash":H,"id":0},"msg":T}}   {"Get":{"dest_id":0}}
            {"Ack":{"dest_id":0,"uid":N}}   {"Ping":{}}
    RESULT  {"Send":{"Ok":true}}   (false: routing refused)   {"Get":{"Ok":null}}
            {"Get":{"Ok":{"uid":N,"from":{"pubkey_hash":H,"id":0},"msg":T}}}   {"Ack":{"Ok":true}}
            {"Ping":true}   {"Send":{"Err":{"MutexError":T}}}
    The newer form of the protocol differs in {"Ping":{"Ok":true}} and in two more errors,
    {"MessageTooLarge":[most KB, got KB]} and "RateLimitExceeded". A client here understands both;
    cfg.protocol says which of them the answers of a peer take.
    The payload is the text T: a JSON array of the bytes as decimal numbers, without spaces. A text
    that is anything else is handed out as text, flagged OPCOMMS_MESSAGE_TEXT.
    Answers come in the order of the requests; a request that breaks the grammar closes the
    connection. Unknown fields are ignored except inside "deadline". The deadline is not enforced.

8  LOG FORMAT
    Written out byte by byte at the top of section >>log.
    opcomms_log_verify, _dump and _repair read a log without its peer (section >>look).
    What is over goes when it is more than half of the log: what is left is copied to a new file,
    piece by piece while the peer works, which needs that much room on the disk for a while.

9  THREADS, LIFETIME, OWNERSHIP
    Every function may be called from any thread unless its comment says otherwise. A peer with a
    background thread works by itself; with OPCOMMS_NO_BACKGROUND the caller pumps opcomms_poll, or
    waits on opcomms_pollfds in a loop of its own. A blocking call pumps such a peer meanwhile, but
    not the peer at the other end: two of them in one thread need OPCOMMS_NO_BACKGROUND off.
    opcomms_stop ends the work and can be called any time, opcomms_free destroys and must be last.
    The callbacks cfg.log and cfg.event run without locks, on the thread of whatever call or step
    caused them, several at once; blocking calls and stop refuse with OPCOMMS_E_BUSY inside. Without
    cfg.event the last 256 events wait for opcomms_next_event. After fork only the parent may use a
    peer.
    The background thread delivers the outbox; with OPCOMMS_NO_BACKGROUND the caller's polls do, and
    a blocking call meanwhile.
    Without a flush thread (OPCOMMS_NO_BACKGROUND) the step that has something to sync blocks for
    the time of one fdatasync.

10 ERRORS
    One enum, OPCOMMS_ERRORS: 0 or negative. opcomms_error, given by the caller, carries the text,
    the system's number, the TLS engine's number, a line or a position. No function prints, exits,
    raises or handles a signal.

11 SECURITY
    - The certificate is a formality for compatibility: it is made at start from the private key
      and signed by a CA whose private key stands in every copy of this software and of the Rust
      system. Its signature proves nothing. The proof is the TLS handshake, which shows that the
      peer holds the private key; its hash is then looked up.
    - There is no option to skip any of this. With a CA of your own (cfg.ca_key_file) the chain is
      checked in addition.
    - TLS 1.2 only (BearSSL), ECDHE with AES-128-GCM or ChaCha20-Poly1305, no renegotiation, no
      compression. Sessions are resumed by session id for an hour at most, in memory, only by the
      key and address they were made with; the allow list is asked again, and every change of it
      forgets them all. OPCOMMS_NO_RESUMPTION switches that off.
    - BearSSL has no extended master secret and does not reject an all-zero X25519 result. A listed
      peer could so arrange that two of its sessions share a secret (the triple handshake); that
      would need renegotiation, or a session trusted for another identity than the one it was made
      under, to be of use, and here there is neither.
    - A stranger can make the peer accept a TCP connection and, if some entry of the allow list
      admits the address, spend one signature; both are limited in number and rate.
    - The native protocol changes nothing of that: the same handshake, identities, lists and limits.
      The allow list is asked again for each batch of frames, the routing table for each channel and
      message. A listed peer can fill what queue_depth_max, window_bytes and streams_max grant it.
    - The log's mode is 0600. With OPCOMMS_ENCRYPT_LOG or cfg.log_password it is encrypted: what a
      message says, who sent it and to whom, numbers seen and the caller's state. Lengths, kinds and
      the order of what is stored are seen by whoever has the file, and the identity that owns it.
      Whoever can write to it cannot change or move an operation unnoticed, but can cut the log or
      put an older one in its place. A log that was in the clear leaves its bytes on the disk, in
      blocks that are no file any more. Payloads and keys never reach the log callback.
    - A key under a password is as safe as the password: whoever has the file can guess, and a guess
      costs what opening it costs, 600 000 iterations of PBKDF2 unless another count was asked for.
      The form has no authentication. A wrong password shows by the padding and the outline of what
      comes out, which is one error; whoever can alter the file can spoil the key, and learns from
      our errors what that form lets anybody learn. Passwords, what is derived from them and opened
      keys are wiped; what BearSSL's own functions leave on the stack is not.

12 PORTING
    Fill in an opcomms_platform (clock, randomness, files, sockets, wait) and pass it in
    cfg.platform; >>posix is the model, and opcomms_platform_default gives it to be wrapped. What
    has to be right: random is cryptographic; file_sync returns when the bytes are on the medium
    and reports every failure; sockets never block and never raise a signal; wait returns early
    when wake_signal was called, from any thread, before or during it. Threads are POSIX threads or
    none (OPCOMMS_NO_THREADS). tests/sim/fake.h is a complete platform without an operating system.
*/

#ifndef OPCOMMS_H
#define OPCOMMS_H

#define OPCOMMS_VERSION_MAJOR 0
#define OPCOMMS_VERSION_MINOR 1
#define OPCOMMS_VERSION_PATCH 0
#define OPCOMMS_VERSION_STRING "0.1.0"

#if defined(OPCOMMS_IMPLEMENTATION)
/* The implementation needs POSIX names. Feature macros count only before the first system header,
   which is why the manual asks for an implementation file that includes this header first. */
#if defined(__linux__) && !defined(OPCOMMS_NO_LINUX)
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#elif defined(__APPLE__)
#ifndef _DARWIN_C_SOURCE
#define _DARWIN_C_SOURCE 1
#endif
#elif !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#if !defined(_FILE_OFFSET_BITS)
#define _FILE_OFFSET_BITS 64 /* logs beyond 2 GiB on 32-bit machines */
#endif
#endif

#include <stddef.h>
#include <stdint.h>

#if defined(OPCOMMS_STATIC)
#if defined(__GNUC__) || defined(__clang__)
#define OPCOMMS_API static __attribute__((unused))
#else
#define OPCOMMS_API static
#endif
#else
#define OPCOMMS_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- errors ---------------------------------------------------------------------------------- */

/* name, value, severity (0 none, 1 non-fatal: one message or peer, 2 fatal: this handle cannot go
   on, 3 programming: the call was wrong), text. Values never change meaning once released. */
#define OPCOMMS_ERRORS(X)                                                                          \
    X(OPCOMMS_OK, 0, 0, "success")                                                                 \
    X(OPCOMMS_E_INVAL, -1, 3, "an argument is not valid")                                          \
    X(OPCOMMS_E_NOMEM, -2, 2, "out of memory")                                                     \
    X(OPCOMMS_E_LIMIT, -3, 1, "a limit was reached")                                               \
    X(OPCOMMS_E_IO, -4, 2, "the operating system reported an error")                               \
    X(OPCOMMS_E_TIMEOUT, -5, 1, "the time is up")                                                  \
    X(OPCOMMS_E_BUSY, -6, 3, "the object is in use")                                               \
    X(OPCOMMS_E_CLOSED, -7, 1, "closed")                                                           \
    X(OPCOMMS_E_UNSUPPORTED, -8, 3, "not supported by this build or platform")                     \
    X(OPCOMMS_E_NOT_FOUND, -9, 1, "not found")                                                     \
    X(OPCOMMS_E_EMPTY, -10, 0, "no message is waiting")                                            \
    X(OPCOMMS_E_BUFFER, -11, 1, "the buffer is too small")                                         \
    X(OPCOMMS_E_ADDRESS, -12, 3, "not a numeric address of the form ip:port")                      \
    X(OPCOMMS_E_IN_USE, -13, 2, "already in use or already there")                                 \
    X(OPCOMMS_E_CONNECT, -14, 1, "the peer cannot be reached")                                     \
    X(OPCOMMS_E_TLS, -15, 1, "the TLS connection failed")                                          \
    X(OPCOMMS_E_IDENTITY, -16, 1, "the peer holds another key than the one asked for")             \
    X(OPCOMMS_E_NOT_ALLOWED, -17, 1, "the allow list does not admit the peer")                     \
    X(OPCOMMS_E_ROUTE, -18, 1, "the routing table does not permit this message")                   \
    X(OPCOMMS_E_PROTOCOL, -19, 1, "the peer broke the protocol")                                   \
    X(OPCOMMS_E_REMOTE, -20, 1, "the peer reported an error")                                      \
    X(OPCOMMS_E_SYNTAX, -21, 1, "the text is not well formed")                                     \
    X(OPCOMMS_E_NO_PEM, -22, 2, "no PEM block was found")                                          \
    X(OPCOMMS_E_ENCRYPTED, -23, 2, "the private key is encrypted")                                 \
    X(OPCOMMS_E_KEY_TYPE, -24, 2, "the key's type or size is not supported")                       \
    X(OPCOMMS_E_KEY_DAMAGED, -25, 2, "the key is damaged")                                         \
    X(OPCOMMS_E_CERT, -26, 1, "the certificate is not acceptable")                                 \
    X(OPCOMMS_E_LOG_DAMAGED, -27, 2, "the log is damaged")                                         \
    X(OPCOMMS_E_LOG_KEY, -28, 2, "the log belongs to another key")                                 \
    X(OPCOMMS_E_LOG_VERSION, -29, 2, "the log's format is not known")                              \
    X(OPCOMMS_E_POISONED, -30, 2, "storage failed earlier; nothing more is accepted")              \
    X(OPCOMMS_E_FULL, -31, 1, "a queue or the log is full")                                        \
    X(OPCOMMS_E_AGAIN, -32, 0, "nothing to do yet")                                                \
    X(OPCOMMS_E_RANDOM, -33, 2, "no randomness could be had")                                      \
    X(OPCOMMS_E_UNKNOWN_OUTCOME, -34, 1, "sent, but the answer did not arrive: outcome unknown") \
    X(OPCOMMS_E_PASSWORD, -35, 2, "the password is wrong or missing")                              \
    X(OPCOMMS_E_ROLLBACK, -36, 1, "a log was replaced by an older copy: waits to be accepted")

typedef enum opcomms_err {
#define OPCOMMS__X(name, value, severity, text) name = value,
    OPCOMMS_ERRORS(OPCOMMS__X)
#undef OPCOMMS__X
    OPCOMMS_E_LAST_ = -37
} opcomms_err;

/* Filled in by every function that takes one and fails; may be NULL. Never owns memory. */
typedef struct opcomms_error {
    opcomms_err code;
    int32_t os_code;   /* errno of the failing system call, or 0 */
    int32_t tls_code;  /* error number of the TLS engine, 256+n: alert n received; or 0 */
    uint32_t line;     /* 1-based line of a text file, or 0 */
    uint64_t position; /* byte offset in a log or text, or 0 */
    char text[192];    /* one sentence, ends with NUL */
} opcomms_error;

/* ---- the operating system, as the library sees it -------------------------------------------- */

/* An IP address and port. IPv4 uses the first four bytes. */
typedef struct opcomms_address {
    uint8_t family; /* 4, 6, or 0 for none */
    uint8_t ip[16];
    uint16_t port;
} opcomms_address;

#define OPCOMMS_NO_HANDLE ((intptr_t)-1)

#define OPCOMMS_POLL_IN 1u
#define OPCOMMS_POLL_OUT 2u
#define OPCOMMS_POLL_ERR 4u

typedef struct opcomms_pollfd {
    intptr_t handle; /* a descriptor on POSIX */
    uint16_t events;
    uint16_t revents;
} opcomms_pollfd;

#define OPCOMMS_FILE_WRITE 1u     /* read and write; without it read only */
#define OPCOMMS_FILE_CREATE 2u    /* create with mode 0600 when absent */
#define OPCOMMS_FILE_EXCLUSIVE 4u /* with CREATE: fail with OPCOMMS_E_IN_USE when it exists */
#define OPCOMMS_FILE_PRIVATE 8u   /* refuse links, other owners and all but regular files */

/* A port is one filled-in struct. Every function gets `user`. All return OPCOMMS_OK or a negative
   error, with the system's own number in *os_code (never NULL). Sockets never block; a function
   that would answers OPCOMMS_E_AGAIN. Files are written and read at offsets; write may be short.
   Called from any thread that uses a peer, several at once. */
typedef struct opcomms_platform {
    uint32_t size; /* sizeof(opcomms_platform) */
    uint32_t reserved;
    void *user;
    uint64_t (*now_us)(void *user); /* monotonic, microseconds */
    int64_t (*wall_s)(void *user);  /* seconds since 1970-01-01 UTC; 0: no clock */
    opcomms_err (*random)(void *user, void *out, size_t len); /* cryptographic */

    opcomms_err (*dir_open)(void *user, const char *path, intptr_t *dir, int *os_code);
    opcomms_err (*dir_sync)(void *user, intptr_t dir, int *os_code);
    void (*dir_close)(void *user, intptr_t dir);
    /* `name` is relative to dir and holds no '/'. Absent: OPCOMMS_E_NOT_FOUND. */
    opcomms_err (*file_open)(void *user, intptr_t dir, const char *name, uint32_t mode,
                             intptr_t *file, int *os_code);
    opcomms_err (*file_lock)(void *user, intptr_t file, int *os_code); /* held: _E_IN_USE */
    opcomms_err (*file_size)(void *user, intptr_t file, uint64_t *bytes, int *os_code);
    opcomms_err (*file_read)(void *user, intptr_t file, uint64_t offset, void *buf, size_t len,
                             size_t *got, int *os_code); /* *got 0: end of file */
    opcomms_err (*file_write)(void *user, intptr_t file, uint64_t offset, const void *buf,
                              size_t len, size_t *put, int *os_code);
    opcomms_err (*file_truncate)(void *user, intptr_t file, uint64_t bytes, int *os_code);
    opcomms_err (*file_sync)(void *user, intptr_t file, int *os_code);
    void (*file_close)(void *user, intptr_t file);
    opcomms_err (*file_rename)(void *user, intptr_t dir, const char *from, const char *to,
                               int *os_code);
    opcomms_err (*file_remove)(void *user, intptr_t dir, const char *name, int *os_code);

    opcomms_err (*tcp_listen)(void *user, const opcomms_address *address, intptr_t *sock,
                              opcomms_address *bound, int *os_code);
    opcomms_err (*tcp_accept)(void *user, intptr_t listener, intptr_t *sock,
                              opcomms_address *peer, int *os_code);
    /* Begins; the outcome is asked by tcp_connected once the socket is writable. */
    opcomms_err (*tcp_connect)(void *user, const opcomms_address *address, intptr_t *sock,
                               int *os_code);
    opcomms_err (*tcp_connected)(void *user, intptr_t sock, int *os_code);
    opcomms_err (*sock_recv)(void *user, intptr_t sock, void *buf, size_t len, size_t *got,
                             int *os_code); /* *got 0: the peer has ended */
    opcomms_err (*sock_send)(void *user, intptr_t sock, const void *buf, size_t len, size_t *put,
                             int *os_code);
    void (*sock_shutdown)(void *user, intptr_t sock, int both); /* 0: our sending side only */
    void (*sock_close)(void *user, intptr_t sock);
    /* Waits until an event or timeout_ms (-1: for ever); sets revents. */
    opcomms_err (*wait)(void *user, opcomms_pollfd *fds, size_t count, int32_t timeout_ms,
                        int *os_code);
    opcomms_err (*wake_open)(void *user, intptr_t wake[2], int *os_code); /* [0] is waited on */
    void (*wake_signal)(void *user, intptr_t wake[2]);
    void (*wake_drain)(void *user, intptr_t wake[2]);
    void (*wake_close)(void *user, intptr_t wake[2]);
    /* 1: file_lock by somebody else would be refused now; 0: not, or not known. Takes no lock. May
       be NULL or missing in an older struct: only a look at a log without its peer asks it. */
    int (*file_locked)(void *user, intptr_t file);
} opcomms_platform;
/* ---- access: who may connect, who may send what to whom -------------------------------------- */

typedef struct opcomms_allow_list opcomms_allow_list;
typedef struct opcomms_routing_table opcomms_routing_table;

/* Where memory comes from. `release` gets the size that was asked for. Called from any thread. */
typedef struct opcomms_allocator {
    void *(*alloc)(void *user, size_t bytes);
    void (*release)(void *user, void *p, size_t bytes);
    void *user;
} opcomms_allocator;

#define OPCOMMS_ANY_ID (-1)

/* An identity and a mailbox number 0..255, or OPCOMMS_ANY_ID in a routing rule. */
typedef struct opcomms_identifier {
    char hash[129];
    int16_t id;
} opcomms_identifier;

/* "hash:id", white space around both parts allowed. OPCOMMS_E_SYNTAX otherwise. */
OPCOMMS_API opcomms_err opcomms_identifier_parse(const char *text, opcomms_identifier *out);
/* "hash:id" or "hash:~" as in routing files: no white space is trimmed. */
OPCOMMS_API opcomms_err opcomms_route_identifier_parse(const char *text, opcomms_identifier *out);
/* Writes "hash:id" or "hash:~"; cap 136 is always enough, else OPCOMMS_E_BUFFER. */
OPCOMMS_API opcomms_err opcomms_identifier_format(const opcomms_identifier *id, char *out,
                                                  size_t cap);

/* Lists are reference-counted and locked: several peers and threads may share one and change it
   while they run. A change takes effect when the call has returned. A fresh list admits nobody.
   alloc NULL: malloc and free. The caller releases; peers hold references of their own. Errors of
   the changing functions: OPCOMMS_E_INVAL, _NOMEM, _LIMIT (65 536 entries). Any thread; do not
   block except for files. */
OPCOMMS_API opcomms_err opcomms_allow_list_new(const opcomms_allocator *alloc,
                                               opcomms_allow_list **out);
OPCOMMS_API void opcomms_allow_list_retain(opcomms_allow_list *list);
OPCOMMS_API void opcomms_allow_list_release(opcomms_allow_list *list);
/* Admits a key hash from one IP address, or from any when ip is NULL. Replaces an older entry. */
OPCOMMS_API opcomms_err opcomms_allow_list_add(opcomms_allow_list *list, const char *hash,
                                               const char *ip);
/* The same for the key in a private key file, or in a certificate file (PEM or DER). For a private
   key under a password there is opcomms_allow_list_add_key_file_with_password. */
OPCOMMS_API opcomms_err opcomms_allow_list_add_key_file(opcomms_allow_list *list, const char *path,
                                                        const char *ip, opcomms_error *err);
OPCOMMS_API opcomms_err opcomms_allow_list_add_cert_file(opcomms_allow_list *list,
                                                         const char *path, const char *ip,
                                                         opcomms_error *err);
/* When it has returned, nothing from that key is stored and nothing new is sent to it.
   OPCOMMS_E_NOT_FOUND: there was no such entry. */
OPCOMMS_API opcomms_err opcomms_allow_list_remove(opcomms_allow_list *list, const char *hash);
OPCOMMS_API opcomms_err opcomms_allow_list_clear(opcomms_allow_list *list);
/* on: anybody who proves any key is admitted. */
OPCOMMS_API opcomms_err opcomms_allow_list_allow_all(opcomms_allow_list *list, int on);
/* 1 or 0; ip NULL asks for the hash alone. */
OPCOMMS_API int opcomms_allow_list_is_allowed(opcomms_allow_list *list, const char *hash,
                                              const char *ip);
OPCOMMS_API size_t opcomms_allow_list_count(opcomms_allow_list *list);
/* 1: allow_all is in force. */
OPCOMMS_API int opcomms_allow_list_is_all(opcomms_allow_list *list);
/* Entry number `index`, counted from 0 in the order of the hashes; ip is empty when any address is
   admitted. cap is the room for each of the two texts: 2 048 is always enough, else
   OPCOMMS_E_BUFFER. OPCOMMS_E_NOT_FOUND: there are not so many. When the list changes between two
   calls an entry can be missed or told twice. */
OPCOMMS_API opcomms_err opcomms_allow_list_entry(opcomms_allow_list *list, size_t index,
                                                 char *hash, char *ip, size_t cap);
/* YAML `hash: ip` or `hash: null`, or the word allow_all. Everything is read before anything
   changes: OPCOMMS_E_SYNTAX names the line in err->line, and the list stays as it was. */
OPCOMMS_API opcomms_err opcomms_allow_list_load(opcomms_allow_list *list, const char *path,
                                                opcomms_error *err);
OPCOMMS_API opcomms_err opcomms_allow_list_load_text(opcomms_allow_list *list, const char *text,
                                                     size_t len, opcomms_error *err);
/* Loads again from the path of the last load. OPCOMMS_E_NOT_FOUND: there was none. */
OPCOMMS_API opcomms_err opcomms_allow_list_reload(opcomms_allow_list *list, opcomms_error *err);
/* Replaces the file in one step: a reader sees the old content or the new. */
OPCOMMS_API opcomms_err opcomms_allow_list_save(opcomms_allow_list *list, const char *path,
                                                opcomms_error *err);

/* Routing rules: from "hash:id" or "hash:~" to "hash:id" or "hash:~". A fresh table permits
   nothing. Everything said of the allow list holds here too. */
OPCOMMS_API opcomms_err opcomms_routing_table_new(const opcomms_allocator *alloc,
                                                  opcomms_routing_table **out);
OPCOMMS_API void opcomms_routing_table_retain(opcomms_routing_table *table);
OPCOMMS_API void opcomms_routing_table_release(opcomms_routing_table *table);
OPCOMMS_API opcomms_err opcomms_routing_table_add(opcomms_routing_table *table, const char *from,
                                                  const char *to);
OPCOMMS_API opcomms_err opcomms_routing_table_remove(opcomms_routing_table *table,
                                                     const char *from, const char *to);
OPCOMMS_API opcomms_err opcomms_routing_table_remove_all_from(opcomms_routing_table *table,
                                                              const char *from);
OPCOMMS_API opcomms_err opcomms_routing_table_remove_all_to(opcomms_routing_table *table,
                                                            const char *to);
OPCOMMS_API opcomms_err opcomms_routing_table_allow_all(opcomms_routing_table *table, int on);
OPCOMMS_API int opcomms_routing_table_can_route(opcomms_routing_table *table,
                                                const opcomms_identifier *from,
                                                const opcomms_identifier *to);
OPCOMMS_API size_t opcomms_routing_table_count(opcomms_routing_table *table);
OPCOMMS_API int opcomms_routing_table_is_all(opcomms_routing_table *table);
/* As opcomms_allow_list_entry. `to` is empty for a source without destinations, which a file may
   hold and which does not count as a rule. */
OPCOMMS_API opcomms_err opcomms_routing_table_entry(opcomms_routing_table *table, size_t index,
                                                    char *from, char *to, size_t cap);
OPCOMMS_API opcomms_err opcomms_routing_table_load(opcomms_routing_table *table, const char *path,
                                                   opcomms_error *err);
OPCOMMS_API opcomms_err opcomms_routing_table_load_text(opcomms_routing_table *table,
                                                        const char *text, size_t len,
                                                        opcomms_error *err);
OPCOMMS_API opcomms_err opcomms_routing_table_reload(opcomms_routing_table *table,
                                                     opcomms_error *err);
OPCOMMS_API opcomms_err opcomms_routing_table_save(opcomms_routing_table *table, const char *path,
                                                   opcomms_error *err);

/* ---- keys and certificates ------------------------------------------------------------------- */

typedef enum opcomms_key_type {
    OPCOMMS_KEY_P256 = 1,
    OPCOMMS_KEY_RSA_2048 = 2,
    OPCOMMS_KEY_RSA_3072 = 3,
    OPCOMMS_KEY_RSA_4096 = 4
} opcomms_key_type;

/* The public key hash (64 hex digits and NUL) of the private key in a PEM file. Errors:
   OPCOMMS_E_NOT_FOUND, _IO, _NO_PEM, _ENCRYPTED, _KEY_TYPE, _KEY_DAMAGED. Any thread. */
OPCOMMS_API opcomms_err opcomms_get_pubk_hash_from_privk(const char *key_file, char hash[65],
                                                         opcomms_error *err);
/* The same for PEM text of `len` bytes in memory. */
OPCOMMS_API opcomms_err opcomms_pubk_hash_from_pem(const char *pem, size_t len, char hash[65],
                                                   opcomms_error *err);
/* Asked for the password of a private key: writes it to `buf`, which has room for `cap` (1 024)
   bytes, and returns its length; no NUL is needed, any bytes are taken. Negative: there is none.
   Called at most once for each key, on the thread and during the call that needs it, without a
   lock, and not before all else about an encrypted key was found in order; never for a key that is
   not encrypted. The buffer is wiped afterwards. */
typedef int (*opcomms_password_fn)(void *user, char *buf, size_t cap);

/* The same for keys that may be under a password. Errors beside those above: OPCOMMS_E_PASSWORD: it
   is wrong; _ENCRYPTED: `password` is NULL or had none; _INVAL: it returned more than cap;
   _KEY_TYPE: another form of encryption than the one in chapter 6 of the manual. Blocks for the key
   derivation: 0.34 s for 600 000 iterations on a PC, at most some 6 s there. */
OPCOMMS_API opcomms_err opcomms_get_pubk_hash_from_privk_with_password(
    const char *key_file, opcomms_password_fn password, void *password_user, char hash[65],
    opcomms_error *err);
OPCOMMS_API opcomms_err opcomms_pubk_hash_from_pem_with_password(
    const char *pem, size_t len, opcomms_password_fn password, void *password_user, char hash[65],
    opcomms_error *err);
OPCOMMS_API opcomms_err opcomms_allow_list_add_key_file_with_password(
    opcomms_allow_list *list, const char *path, const char *ip, opcomms_password_fn password,
    void *password_user, opcomms_error *err);

/* The hash of the key in a certificate file, PEM or DER. OPCOMMS_E_CERT: not a certificate. */
OPCOMMS_API opcomms_err opcomms_pubk_hash_from_cert_file(const char *path, char hash[65],
                                                         opcomms_error *err);

/* Makes a key and writes it as PKCS#8 PEM, mode 0600, synced. An existing file is never
   overwritten: OPCOMMS_E_IN_USE. RSA takes seconds for 4096 bits. Any thread; blocks. */
OPCOMMS_API opcomms_err opcomms_generate_key_file(const char *path, opcomms_key_type type,
                                                  opcomms_error *err);
/* The same into memory; 4 096 bytes are always enough. The caller wipes it. */
OPCOMMS_API opcomms_err opcomms_generate_key_pem(opcomms_key_type type, char *out, size_t cap,
                                                 size_t *len, opcomms_error *err);

/* PBKDF2-HMAC-SHA256 iterations of a key that we write, when 0 is asked for: what OWASP advises
   since 2023. That is 0.34 s of BearSSL's SHA-256 on a PC of 2020, each time the key is opened, and
   tens of seconds on a small microcontroller. At least 1 000, at most 10 000 000. */
#define OPCOMMS_ITERATIONS 600000u

/* As the two above, but PKCS#8 encrypted by PBES2 with AES-256-CBC: OpenSSL reads it. `password` is
   asked first. OPCOMMS_E_PASSWORD: it had none, or an empty one; _INVAL: iterations are out of
   range. */
OPCOMMS_API opcomms_err opcomms_generate_key_file_with_password(
    const char *path, opcomms_key_type type, opcomms_password_fn password, void *password_user,
    uint32_t iterations, opcomms_error *err);
OPCOMMS_API opcomms_err opcomms_generate_key_pem_with_password(
    opcomms_key_type type, opcomms_password_fn password, void *password_user, uint32_t iterations,
    char *out, size_t cap, size_t *len, opcomms_error *err);

/* Writes the key in a file anew, as PKCS#8 under the password that `new_password` gives, or not
   encrypted when new_password is NULL. `password` is asked when the key is encrypted now. The file
   is replaced in one step, mode 0600, synced: at any time it holds the old form or the new. Whether
   the disk keeps the old bytes somewhere is not in our power. Errors: those of reading a key and of
   opcomms_generate_key_file_with_password; OPCOMMS_E_IO: a link, or somebody else's file (where the
   old form would stay behind); OPCOMMS_E_INVAL: there is more than one PEM block in it, and all but
   the key would be lost. Whatever fails, the file is as it was. Any thread; blocks. */
OPCOMMS_API opcomms_err opcomms_change_key_password(
    const char *path, opcomms_password_fn password, void *password_user,
    opcomms_password_fn new_password, void *new_password_user, uint32_t iterations,
    opcomms_error *err);

/* The certificate a peer with this key shows, as PEM text; ca_key_file NULL: the well-known CA.
   4 096 bytes are always enough. For `openssl verify` and for curious people. */
OPCOMMS_API opcomms_err opcomms_make_cert(const char *key_file, const char *ca_key_file, char *out,
                                          size_t cap, size_t *len, opcomms_error *err);
/* The CA's own certificate. */
OPCOMMS_API opcomms_err opcomms_make_ca_cert(const char *ca_key_file, char *out, size_t cap,
                                             size_t *len, opcomms_error *err);
/* Both for keys that may be under a password: asked for key_file first, then for ca_key_file. */
OPCOMMS_API opcomms_err opcomms_make_cert_with_password(
    const char *key_file, const char *ca_key_file, opcomms_password_fn password,
    void *password_user, char *out, size_t cap, size_t *len, opcomms_error *err);
OPCOMMS_API opcomms_err opcomms_make_ca_cert_with_password(
    const char *ca_key_file, opcomms_password_fn password, void *password_user, char *out,
    size_t cap, size_t *len, opcomms_error *err);

/* ---- the peer -------------------------------------------------------------------------------- */

typedef struct opcomms_peer opcomms_peer;
typedef struct opcomms_message opcomms_message;

/* Durability of the log: what "stored" means. With the last two opcomms_enqueue and opcomms_commit
   return before the message is written, which the next step does: a crash of the process in between
   loses it. */
typedef enum opcomms_durability {
    OPCOMMS_DURABLE_ALWAYS = 0,   /* synced before it is acknowledged or handed out */
    OPCOMMS_DURABLE_INTERVAL = 1, /* written; synced every sync_interval_ms: so much is at risk */
    OPCOMMS_DURABLE_NEVER = 2     /* written; synced when the system likes: survives kill -9 only */
} opcomms_durability;

/* Bits of opcomms_config.flags. */
#define OPCOMMS_NO_BACKGROUND 1u /* no thread: the caller pumps with opcomms_poll */
#define OPCOMMS_MEMORY_STORE 2u  /* no log: messages live in memory and end with the peer */
#define OPCOMMS_NO_LISTEN 4u     /* no listening socket; with MEMORY_STORE it only sends */
#define OPCOMMS_NO_RESUMPTION 8u /* every connection makes a full handshake */
#define OPCOMMS_TARPC_ONLY 16u   /* never the native protocol */
#define OPCOMMS_NATIVE_ONLY 32u  /* opcomms_send and the outbox: never tarpc */
#define OPCOMMS_ENCRYPT_LOG 64u  /* under the private key; see log_password for one of its own */
#define OPCOMMS_DECRYPT_LOG 128u /* an encrypted log is in the clear from now on */

#define OPCOMMS_LOG_ERROR 1
#define OPCOMMS_LOG_WARNING 2
#define OPCOMMS_LOG_INFO 3

typedef struct opcomms_event opcomms_event;

/* Told of each event of the outbox, see opcomms_next_event; on the thread of whatever call or step
   caused it, without locks. Blocking calls and stop refuse with OPCOMMS_E_BUSY inside. */
typedef void (*opcomms_event_fn)(void *user, const opcomms_event *event);

/* One line of the log callback. `text` is valid during the call. Never holds payload or keys. */
typedef void (*opcomms_log_fn)(void *user, int level, const char *text);

/* Zero in every field means its default, so a program sets what it needs:
       opcomms_config cfg;
       opcomms_config_init(&cfg);
   Strings and lists are read during opcomms_new; lists are retained, strings copied where needed.
   `size` lets a library of another version read the struct it was given. */
typedef struct opcomms_config {
    uint32_t size;
    uint32_t flags;
    const char *address;      /* "ip:port" to listen on; default "0.0.0.0:0"; port 0: a free one */
    const char *key_file;     /* PEM private key; or key_pem */
    const char *key_pem;
    size_t key_pem_bytes;
    const char *ca_key_file;  /* PEM private key of the user's own CA; default: the well-known CA */
    opcomms_allow_list *allow;      /* required */
    opcomms_routing_table *routes;  /* required: who may send what to whom here */
    const char *log_path;     /* default "opcomms-<16 digits of the own hash>.log" */
    opcomms_durability durability;
    uint32_t sync_interval_ms;         /* default 1 000 */
    uint32_t connections_max;          /* default 64, at most 1 024; in and out together */
    uint32_t connections_per_address;  /* default 16; inbound */
    uint32_t handshakes_max;           /* inbound at once; default 16 */
    uint32_t handshakes_per_second;    /* inbound; default 100, bursts of the same */
    uint32_t handshake_timeout_ms;     /* default 10 000 */
    uint32_t idle_timeout_ms;          /* default 300 000 */
    uint32_t send_timeout_ms;          /* for opcomms_send with timeout 0; default 10 000 */
    uint32_t messages_max;             /* unread messages kept; default 100 000 */
    uint32_t queue_depth_max;          /* unread, per sender and destination; default 10 000 */
    uint32_t mailboxes_max;            /* other identities to keep mail for; default 0 */
    uint32_t frame_bytes_max;          /* default and most OPCOMMS_MAX_FRAME */
    uint32_t reserved;
    uint64_t log_bytes_max;            /* size of the log; default 1 GiB */
    uint64_t memory_bytes_max;         /* default 64 MiB */
    const opcomms_allocator *allocator;  /* copied; default malloc and free */
    const opcomms_platform *platform;    /* must outlive the peer; default POSIX */
    opcomms_log_fn log;
    void *log_user;
    uint32_t protocol;        /* OPCOMMS_PROTOCOL_...: the form of our answers; default v0.5.0 */
    uint32_t rate_capacity;   /* requests an identity may make in a burst; default 10 000 */
    uint32_t rate_per_second; /* and on average; default 100 */
    uint32_t rate_cost;       /* tokens a request costs; default 1 */
    opcomms_password_fn password; /* for an encrypted key_file or key_pem, then for ca_key_file */
    void *password_user;
    uint32_t queued_max;       /* messages in the outbox; default 100 000 */
    uint32_t queued_per_destination_max; /* default: as queued_max */
    uint64_t queued_bytes_max; /* payload in the outbox; default 256 MiB */
    uint32_t destinations_max; /* of the outbox, with something queued; default 4 096 */
    uint32_t attempts_max;     /* to deliver a queued message; default 0: for ever */
    uint32_t retry_min_ms;     /* wait after a failed attempt; default 100, doubling */
    uint32_t retry_max_ms;     /* up to this; default 10 000 */
    uint32_t window_messages;  /* native: unacknowledged ones of a sender; default 16 384 */
    uint32_t streams_max;      /* native: sender and destination pairs remembered; default 16 384 */
    uint64_t window_bytes;     /* native: and their payload; default 8 MiB */
    uint64_t message_bytes_max; /* native: largest message; default and most OPCOMMS_MAX_FRAME */
    opcomms_event_fn event;
    void *event_user;
    /* Encryption of the log. With OPCOMMS_ENCRYPT_LOG under the private key, else with log_password
       under that password, else not at all. A log that is otherwise is written anew by opcomms_new,
       which needs what it was under so far; an encrypted one for which nothing is set here is
       refused, OPCOMMS_E_ENCRYPTED; so is a wrong password, OPCOMMS_E_PASSWORD. Each opening costs
       what an encrypted key costs. */
    opcomms_password_fn log_password;
    void *log_password_user;
    opcomms_password_fn log_password_new; /* the password from now on; log_password tells the old */
    void *log_password_new_user;
} opcomms_config;

#define OPCOMMS_UNLIMITED 0xffffffffu /* rate_capacity: requests are not counted */

/* As a client a peer understands both forms by itself. The newer one answers a Ping by a Result and
   knows the errors MessageTooLarge and RateLimitExceeded, which break a v0.5.0 client. */
#define OPCOMMS_PROTOCOL_V050 0u
#define OPCOMMS_PROTOCOL_NEWER 1u

/* Zeroes the struct and sets its size. */
OPCOMMS_API void opcomms_config_init(opcomms_config *cfg);

/* The built-in platform, to be wrapped by a port or a test that changes a call or two. NULL under
   OPCOMMS_NO_POSIX. Any thread. */
OPCOMMS_API const opcomms_platform *opcomms_platform_default(void);

/* "0.1.0": the version of the implementation that was linked. Any thread. */
OPCOMMS_API const char *opcomms_version(void);

/* A fixed English text for a code, e.g. for a log. Any thread. */
OPCOMMS_API const char *opcomms_err_text(opcomms_err code);

/* 0 none, 1 non-fatal (one message or peer), 2 fatal (this handle cannot go on), 3 programming. */
OPCOMMS_API int opcomms_err_severity(opcomms_err code);

/* What a settings file says: see chapter 6 of the manual. */
typedef struct opcomms_settings opcomms_settings;

/* Reads a settings file and the lists it names, all of it before anything is handed out. Relative
   paths in it are relative to its directory. alloc NULL: malloc and free. On failure *out is
   untouched and err (may be NULL) says why: OPCOMMS_E_SYNTAX with the line in err->line for what
   is not YAML, an unknown or repeated key, a bad value; when a list cannot be loaded err->line is
   the line that names it, and the text tells the line in the list; OPCOMMS_E_NOT_FOUND, _IO,
   _LIMIT, _NOMEM, _INVAL, _UNSUPPORTED (no built-in platform). The caller frees *out by
   opcomms_settings_free. Any thread. */
OPCOMMS_API opcomms_err opcomms_settings_load(const opcomms_allocator *alloc, const char *path,
                                              opcomms_settings **out, opcomms_error *err);
/* The same for text in memory. Relative paths are relative to dir; NULL: as they stand. */
OPCOMMS_API opcomms_err opcomms_settings_load_text(const opcomms_allocator *alloc,
                                                   const char *text, size_t len, const char *dir,
                                                   opcomms_settings **out, opcomms_error *err);
/* Sets those fields of *cfg that the file names and leaves the others: a program's own defaults go
   in before, what the command line overrides goes in behind. Strings and lists belong to the
   settings, which may be freed when opcomms_new has returned, unless the program still wants cfg.
   OPCOMMS_E_INVAL: an argument is NULL, or cfg->size has no room for a field that the file
   names; then *cfg is as it was. Any thread. */
OPCOMMS_API opcomms_err opcomms_settings_config(const opcomms_settings *settings,
                                                opcomms_config *cfg);
/* NULL is allowed. */
OPCOMMS_API void opcomms_settings_free(opcomms_settings *settings);

/* Opens a peer: reads the key, makes the certificate, opens and recovers the log, binds and
   listens (connections are accepted from now on), starts the background thread unless told not to.
   On failure *out is untouched, nothing stays open, and err (may be NULL) says why:
   OPCOMMS_E_INVAL, _ADDRESS, the key errors, _IN_USE (port or log), _LOG_..., _IO, _NOMEM.
   The caller ends it with opcomms_free. Blocks for disk and one RSA signature. Any thread. */
OPCOMMS_API opcomms_err opcomms_new(const opcomms_config *cfg, opcomms_peer **out,
                                    opcomms_error *err);

/* Sends `len` bytes to the peer with public key hash `hash` (64 lower-case hex digits) that
   listens on `address` ("ip:port"), and returns when that peer has stored them as durably as it is
   configured to. The key of whoever answers there is checked against `hash` before a byte of the
   message leaves. timeout_ms 0: the configured default. The data is not kept after the return.
   Errors to act on:
   OPCOMMS_E_CONNECT, _TLS: not delivered, try again later; OPCOMMS_E_IDENTITY: somebody else
   listens there; OPCOMMS_E_NOT_ALLOWED: our list or theirs; OPCOMMS_E_ROUTE: their routing table
   refuses; OPCOMMS_E_LIMIT: does not fit a frame, or natively is larger than the receiver takes
   (nothing was sent); OPCOMMS_E_REMOTE: their error, in err->text; OPCOMMS_E_TIMEOUT: not sent in
   time; OPCOMMS_E_ROLLBACK: see opcomms_accept_rollback; OPCOMMS_E_UNKNOWN_OUTCOME: it was sent and
   the answer did not come: it may have been stored, sending again may duplicate.
   Others: OPCOMMS_E_INVAL, _ADDRESS, _NOMEM, _CLOSED, _UNSUPPORTED (OPCOMMS_NATIVE_ONLY, and that
   peer speaks tarpc only).
   Any thread, several at once; not from a callback (OPCOMMS_E_BUSY). Blocks up to timeout_ms. */
OPCOMMS_API opcomms_err opcomms_send(opcomms_peer *peer, const char *hash, const char *address,
                                     const void *data, size_t len, uint32_t timeout_ms,
                                     opcomms_error *err);

/* Asks whether the peer answers, over the same kept connection opcomms_send uses. Errors, threads
   and blocking as opcomms_send. */
OPCOMMS_API opcomms_err opcomms_ping(opcomms_peer *peer, const char *hash, const char *address,
                                     uint32_t timeout_ms, opcomms_error *err);

/* Copies the oldest unread message of our own mailbox into buf, and acknowledges it: it is not
   handed out again. *len is its size, *from its sender (may be NULL). OPCOMMS_E_EMPTY: none;
   OPCOMMS_E_BUFFER: *len tells the size needed, nothing is acknowledged. Others: those of
   opcomms_receive and opcomms_ack. Never blocks on a peer. Any thread. */
OPCOMMS_API opcomms_err opcomms_check_receive(opcomms_peer *peer, opcomms_identifier *from,
                                              void *buf, size_t cap, size_t *len,
                                              opcomms_error *err);

/* Waits up to timeout_ms (0: do not wait; OPCOMMS_FOREVER) for a message and hands out the oldest
   that is not handed out already. It stays stored until opcomms_ack; opcomms_release puts it back
   to its place. At most 16 384 are out at once (OPCOMMS_E_LIMIT). OPCOMMS_E_EMPTY: none in time;
   OPCOMMS_E_CLOSED: stopped; _INVAL, _NOMEM; _IO, _LOG_DAMAGED: the disk lost it. The caller ends
   *out by opcomms_ack, opcomms_ack_batch, opcomms_commit or opcomms_release. Any thread; from a
   callback only with timeout 0 (_BUSY). */
#define OPCOMMS_FOREVER 0xffffffffu
OPCOMMS_API opcomms_err opcomms_receive(opcomms_peer *peer, uint32_t timeout_ms,
                                        opcomms_message **out, opcomms_error *err);

/* The same from our mailbox `id`; opcomms_receive is mailbox 0. */
OPCOMMS_API opcomms_err opcomms_receive_id(opcomms_peer *peer, uint8_t id, uint32_t timeout_ms,
                                           opcomms_message **out, opcomms_error *err);

/* Waits like opcomms_receive without taking the message: OPCOMMS_OK when one is there. Errors,
   threads and blocking as there. */
OPCOMMS_API opcomms_err opcomms_wait(opcomms_peer *peer, uint32_t timeout_ms);

/* The message is consumed: removed from the store. The handle is freed, also on failure.
   OPCOMMS_E_CLOSED: stopped; _POISONED, _IO: it stays stored; _INVAL; _NOT_FOUND: it was consumed
   through opcomms_client_ack or opcomms_local_ack. Any thread, one at a time for a handle; writes
   to the log, and waits for a sync only when its buffers are full. */
OPCOMMS_API opcomms_err opcomms_ack(opcomms_message *message, opcomms_error *err);

/* Gives the message back unconsumed; the handle is freed. NULL is allowed. Any thread; does not
   block; also after opcomms_stop. */
OPCOMMS_API void opcomms_release(opcomms_message *message);

#define OPCOMMS_MESSAGE_TEXT 1u /* came as text that is no JSON byte array: handed out as UTF-8 */
#define OPCOMMS_MESSAGE_UNCERTAIN 2u /* it may have come before: see opcomms_accept_rollback; or it
                                        was also tried by tarpc */

/* Of a message handed out; valid until its ack or release. Any thread; none blocks. */
OPCOMMS_API size_t opcomms_message_size(const opcomms_message *message);
OPCOMMS_API uint64_t opcomms_message_number(const opcomms_message *message);
OPCOMMS_API uint32_t opcomms_message_flags(const opcomms_message *message);
OPCOMMS_API void opcomms_message_from(const opcomms_message *message, opcomms_identifier *from);
/* Reads up to len bytes at offset; *got 0 at the end. The payload's checksum is verified:
   OPCOMMS_E_LOG_DAMAGED when the disk lost it. OPCOMMS_E_INVAL, _IO; _CLOSED: stopped; _NOT_FOUND:
   as opcomms_ack. Any thread; reads the disk. */
OPCOMMS_API opcomms_err opcomms_message_read(opcomms_message *message, uint64_t offset, void *buf,
                                             size_t len, size_t *got);

/* The peer's own public key hash, 64 hex digits and NUL. Any thread. */
OPCOMMS_API opcomms_err opcomms_get_pubk_hash(const opcomms_peer *peer, char hash[65]);

/* "ip:port" it listens on (the real port when 0 was asked for). cap 64 is always enough, else
   OPCOMMS_E_BUFFER. OPCOMMS_E_NOT_FOUND: it does not listen. Any thread. */
OPCOMMS_API opcomms_err opcomms_get_address(const opcomms_peer *peer, char *out, size_t cap);

/* For a caller's own event loop (OPCOMMS_NO_BACKGROUND): fills fds with what to wait for and
   *timeout_ms with how long at most (-1: for ever), *count with how many. OPCOMMS_E_BUFFER: cap is
   too small, *count tells the need; _BUSY: it has a thread, or is being pumped now; _CLOSED. Then
   call opcomms_poll(peer, 0). Does not block. */
OPCOMMS_API opcomms_err opcomms_pollfds(opcomms_peer *peer, opcomms_pollfd *fds, size_t cap,
                                        size_t *count, int32_t *timeout_ms);

/* One step: waits up to timeout_ms for events (0: do not wait), then does what is due. Only with
   OPCOMMS_NO_BACKGROUND, one thread at a time, and not from a callback: else OPCOMMS_E_BUSY.
   OPCOMMS_E_CLOSED: stopped. */
OPCOMMS_API opcomms_err opcomms_poll(opcomms_peer *peer, uint32_t timeout_ms);

typedef struct opcomms_stats {
    uint32_t size; /* set by the caller to sizeof(opcomms_stats) */
    uint32_t connections;        /* open now, in and out */
    uint64_t accepted;           /* connections accepted since start */
    uint64_t refused_address;    /* closed at accept: no entry admits the address */
    uint64_t refused_limit;      /* closed at accept: a cap or the handshake rate */
    uint64_t handshakes;         /* completed */
    uint64_t handshakes_failed;
    uint64_t messages_in;        /* stored */
    uint64_t messages_out;       /* acknowledged by the receiver */
    uint64_t routes_refused;
    uint64_t protocol_errors;
    uint64_t unread;             /* messages waiting now */
    uint64_t syncs;
    uint64_t memory_bytes;       /* from the allocator now */
    uint64_t log_bytes;
    uint64_t resumed;            /* of the handshakes: those that resumed a session */
    uint64_t rate_limited;       /* requests refused: rate_capacity, rate_per_second */
    uint64_t queue_full;         /* messages refused: queue_depth_max, messages_max and so on */
    uint64_t too_large;          /* messages refused: frame_bytes_max, newer protocol */
    uint64_t queued;             /* in the outbox now */
    uint64_t queued_bytes;
    uint64_t dead_letters;       /* now */
    uint64_t delivered;          /* from the outbox */
    uint64_t attempts_failed;
    uint64_t duplicates;         /* messages that came again and were not stored again */
    uint64_t rollbacks;          /* connections refused because a log went back */
    uint64_t native_connections; /* open now */
} opcomms_stats;

/* Counts since the start, and what is held now. The caller sets stats->size, and only so much is
   written. Any thread; does not block. */
OPCOMMS_API opcomms_err opcomms_get_stats(opcomms_peer *peer, opcomms_stats *stats);

/* ---- the outbox: messages that are delivered whatever fails ---------------------------------- */

/* Beyond the identity and mailbox of opcomms_enqueue. Zero means the default. */
typedef struct opcomms_enqueue_options {
    uint32_t size;         /* sizeof(opcomms_enqueue_options) */
    uint32_t flags;        /* OPCOMMS_ENQUEUE_... */
    uint32_t attempts_max; /* 0: cfg.attempts_max */
    uint32_t expiry_s;     /* seconds from now until it becomes a dead letter; 0: never */
    uint8_t from_id;       /* our mailbox it comes from */
    uint8_t level;         /* OPCOMMS_LEVEL_...: when it is done; default durable */
    uint8_t reserved[6];
} opcomms_enqueue_options;

#define OPCOMMS_ENQUEUE_TEXT 1u        /* the data is UTF-8 text, see OPCOMMS_MESSAGE_TEXT */
#define OPCOMMS_ENQUEUE_NATIVE_ONLY 2u /* never by tarpc, which knows no exactly-once */

/* How far a message has come at the receiver. Peers that speak tarpc tell durable alone. */
#define OPCOMMS_LEVEL_RECEIVED 1u /* in its memory */
#define OPCOMMS_LEVEL_DURABLE 2u  /* in its log, as durably as it is configured */
#define OPCOMMS_LEVEL_CONSUMED 3u /* its program has acknowledged it */

/* Stores a message in our own log and returns; it is delivered in the background, in the order of
   these calls for each (sender mailbox, destination), again and again with jittered waits from
   cfg.retry_min_ms doubling to cfg.retry_max_ms, until the receiver has it, and there exactly once
   when it is a peer of this library. to->hash is also the key of the server that is delivered to.
   address: "ip:port"; the last one given for a destination counts. NULL: over a connection which
   that peer makes to us. context: up to 256 bytes of the caller's, handed back with a dead letter.
   options may be NULL. *number (may be NULL) identifies the message in this log, also after a
   restart. Returns when it is as durable as configured; with OPCOMMS_DURABLE_INTERVAL and _NEVER
   when it is in memory, from where the next step writes it.
   OPCOMMS_E_FULL: a limit of the outbox or the log is reached, nothing is stored; others:
   OPCOMMS_E_INVAL, _ADDRESS, _NOT_ALLOWED (our own list), _LIMIT (too large), _NOMEM, _CLOSED,
   _BUSY (callback); _POISONED (the disk failed), _UNKNOWN_OUTCOME (stop came while it was synced):
   the next opening tells whether it is stored. Any thread; blocks for the disk, with
   OPCOMMS_DURABLE_ALWAYS. The data is not kept after the return. Without background thread the
   caller's polls deliver it. */
OPCOMMS_API opcomms_err opcomms_enqueue(opcomms_peer *peer, const opcomms_identifier *to,
                                        const char *address, const void *context,
                                        size_t context_len, const void *data, size_t len,
                                        const opcomms_enqueue_options *options, uint64_t *number,
                                        opcomms_error *err);

/* What became of a queued message. */
#define OPCOMMS_STATE_QUEUED 1u    /* waits */
#define OPCOMMS_STATE_SENT 2u      /* on its way, not acknowledged; as an event: by tarpc only */
#define OPCOMMS_STATE_RECEIVED 3u  /* in the receiver's memory */
#define OPCOMMS_STATE_DURABLE 4u   /* as an event: done, unless consumption was asked for */
#define OPCOMMS_STATE_CONSUMED 5u
#define OPCOMMS_STATE_DEAD 6u      /* a dead letter */
#define OPCOMMS_STATE_CANCELLED 7u /* as an event */
#define OPCOMMS_STATE_MISSED 8u    /* as an event: so many events were lost, in `number` */
#define OPCOMMS_STATE_ROLLBACK 9u  /* as an event: all with `to` stops: opcomms_accept_rollback */
#define OPCOMMS_STATE_LOG 10u      /* as an event: the log is filling up, `number` per cent of it */

/* A message of the outbox, or a dead letter. */
typedef struct opcomms_queued {
    uint64_t number;
    uint64_t bytes;
    uint32_t state;      /* OPCOMMS_STATE_... */
    uint32_t attempts;
    opcomms_err code;    /* why the last attempt failed, or OPCOMMS_OK */
    uint32_t uncertain;  /* 1: it was tried by tarpc: the receiver may have it */
    opcomms_identifier to;
    uint8_t from_id;
    uint8_t level;
    uint8_t reserved[2];
    uint32_t context_len;
    uint8_t context[256];
    int64_t time_s;      /* when it was queued; seconds since 1970 */
    int64_t expires_s;   /* or 0 */
    int64_t dead_s;      /* when it became a dead letter, or 0 */
} opcomms_queued;

/* Looks at the outbox. All of them, those of the dead letters below too: OPCOMMS_E_NOT_FOUND: done,
   cancelled, taken, or never there; _INVAL; _CLOSED: stopped (a count keeps its last value); _IO,
   _LOG_DAMAGED: the disk lost it. Any thread; they read the disk and block for nothing else. */
OPCOMMS_API opcomms_err opcomms_queued_get(opcomms_peer *peer, uint64_t number,
                                           opcomms_queued *out);
/* Messages of the outbox; hash NULL: for all servers. 0 for what is no hash. */
OPCOMMS_API uint64_t opcomms_queued_count(opcomms_peer *peer, const char *hash);
/* The oldest message of the outbox, for any destination, whose number is above `after` (0: from the
   first). OPCOMMS_E_NOT_FOUND: none. */
OPCOMMS_API opcomms_err opcomms_queued_next(opcomms_peer *peer, uint64_t after,
                                            opcomms_queued *out);
/* Takes a message out of the outbox. When it was sent already it may arrive all the same:
   OPCOMMS_E_UNKNOWN_OUTCOME then, and it is cancelled. OPCOMMS_E_NOT_FOUND as above; _POISONED,
   _CLOSED, _BUSY (callback). Any thread; blocks for the disk. */
OPCOMMS_API opcomms_err opcomms_cancel(opcomms_peer *peer, uint64_t number, opcomms_error *err);

/* Something happened to a message of the outbox, or to the log. */
struct opcomms_event {
    uint64_t number;
    uint32_t state;   /* OPCOMMS_STATE_... */
    opcomms_err code; /* DEAD: why */
    char to[65];      /* the server's key */
};

/* The oldest event not told yet; waits up to timeout_ms for one. OPCOMMS_E_EMPTY: none in time.
   256 are kept, further ones are counted in one of OPCOMMS_STATE_MISSED. None are kept when
   cfg.event is told of them. OPCOMMS_E_CLOSED: stopped, and none is left. Any thread; from a
   callback only with timeout 0 (_BUSY). */
OPCOMMS_API opcomms_err opcomms_next_event(opcomms_peer *peer, uint32_t timeout_ms,
                                           opcomms_event *out);

/* Dead letters: what ran out of attempts, expired, or was refused for good. They stay until they
   are dropped or queued again. The oldest above number `after`; OPCOMMS_E_NOT_FOUND: none. */
OPCOMMS_API opcomms_err opcomms_dead_next(opcomms_peer *peer, uint64_t after, opcomms_queued *out);
OPCOMMS_API uint64_t opcomms_dead_count(opcomms_peer *peer);
/* Payload of a dead letter, or of a queued message, from `offset` on; *got 0 at its end, which is
   checked as by opcomms_message_read. OPCOMMS_E_NOT_FOUND also after opcomms_stop. */
OPCOMMS_API opcomms_err opcomms_queued_read(opcomms_peer *peer, uint64_t number, uint64_t offset,
                                            void *buf, size_t len, size_t *got);
/* Queues it again, behind all others, with a new number and fresh attempts, without expiry; in one
   operation with the end of the dead letter. Errors, threads and blocking as opcomms_enqueue, whose
   limits hold; OPCOMMS_E_NOT_FOUND: no such dead letter. *fresh_number (may be NULL) is told. */
OPCOMMS_API opcomms_err opcomms_dead_requeue(opcomms_peer *peer, uint64_t number,
                                             uint64_t *fresh_number, opcomms_error *err);
/* Forgets it. Errors, threads and blocking as opcomms_cancel. */
OPCOMMS_API opcomms_err opcomms_dead_drop(opcomms_peer *peer, uint64_t number, opcomms_error *err);

/* opcomms_send with a number of the caller's keeping: *number 0 takes a new one and tells it; any
   other is one that an earlier call told, and then a receiver that stored the message does not
   store it again. That holds between native peers, while both peers stay open, for the last 1 024
   numbers; otherwise the error is OPCOMMS_E_UNKNOWN_OUTCOME. address NULL: over a connection which
   that peer has made to us, or none: OPCOMMS_E_CONNECT. Errors, threads and blocking as
   opcomms_send. */
OPCOMMS_API opcomms_err opcomms_send_numbered(opcomms_peer *peer, const char *hash,
                                              const char *address, const void *data, size_t len,
                                              uint64_t *number, uint32_t timeout_ms,
                                              opcomms_error *err);

/* As opcomms_receive_id, up to `cap` messages at once, which count among the messages handed out;
   waits for the first of them only. OPCOMMS_OK: *count is 1 or more. Errors and threads as
   there. */
OPCOMMS_API opcomms_err opcomms_receive_batch(opcomms_peer *peer, uint8_t id, uint32_t timeout_ms,
                                              opcomms_message **out, size_t cap, size_t *count,
                                              opcomms_error *err);
/* Acknowledges them all in one operation: all or none are handed out again after a crash. All are
   of one peer; the handles are freed, also on failure. OPCOMMS_E_LIMIT: more than 4 096; else
   errors, threads and blocking as opcomms_ack. */
OPCOMMS_API opcomms_err opcomms_ack_batch(opcomms_message *const *messages, size_t count,
                                          opcomms_error *err);

/* One message to be queued by opcomms_commit; fields as the arguments of opcomms_enqueue. */
typedef struct opcomms_outgoing {
    opcomms_identifier to;
    const char *address;
    const void *context;
    size_t context_len;
    const void *data;
    size_t len;
    const opcomms_enqueue_options *options;
    uint64_t number; /* told */
} opcomms_outgoing;

/* All or none, in one write and one sync: acknowledges `messages`, queues `outgoing`, and replaces
   the caller's state record (state NULL: leaves it; at most 4 096 bytes). So a program that has
   processed messages, changed its own state and answered does neither again after a crash, nor
   forget one of them. Returns when all of it is as durable as configured. On success the handles
   are freed. On failure they stay valid, and nothing of it has happened, with two exceptions: when
   the disk fails under it (OPCOMMS_E_POISONED) or stop comes meanwhile (_UNKNOWN_OUTCOME), the next
   opening of the log tells whether all of it has happened or nothing. Errors as opcomms_enqueue and
   opcomms_ack; OPCOMMS_E_LIMIT: more than 4 096 messages, 64 to be queued, or too large for one
   operation. Any thread; not from a callback (_BUSY). Blocks for the disk. */
OPCOMMS_API opcomms_err opcomms_commit(opcomms_peer *peer, opcomms_message *const *messages,
                                       size_t messages_count, opcomms_outgoing *outgoing,
                                       size_t outgoing_count, const void *state, size_t state_len,
                                       opcomms_error *err);
/* The state record, as it was last committed, also before a restart. *len is its size;
   OPCOMMS_E_BUFFER: cap is too small. OPCOMMS_E_EMPTY: there is none. _INVAL. Any thread; does not
   block. */
OPCOMMS_API opcomms_err opcomms_get_state(opcomms_peer *peer, void *buf, size_t cap, size_t *len);

/* A copy of the log of a running peer at `path`, where there must be nothing yet: all that is
   kept at one moment between call and return, in a file that opens as a log, complete and synced
   when it appears under its name. Encrypted as the log is. Whoever opens it later instead of the
   log puts an older state in its place: other peers find out, see opcomms_accept_rollback.
   OPCOMMS_E_IN_USE: something is there; OPCOMMS_E_UNSUPPORTED: a memory store; OPCOMMS_E_IO;
   _CLOSED, _POISONED, _BUSY (callback). Any thread; blocks, while the peer goes on. */
OPCOMMS_API opcomms_err opcomms_backup(opcomms_peer *peer, const char *path, opcomms_error *err);

/* A log, ours or the other peer's, was replaced by an older copy (or copied): event
   OPCOMMS_STATE_ROLLBACK, and OPCOMMS_E_ROLLBACK for what is sent there. Nothing moves between the
   two until the operator of the peer that reported it, or of both, has looked and says go on. What
   the older log still queues may then arrive twice, marked OPCOMMS_MESSAGE_UNCERTAIN.
   OPCOMMS_E_NOT_FOUND: nothing stands against that key; _INVAL, _POISONED, _CLOSED, _BUSY
   (callback). Any thread; blocks for the disk. */
OPCOMMS_API opcomms_err opcomms_accept_rollback(opcomms_peer *peer, const char *hash,
                                                opcomms_error *err);

/* ---- the broker channel: mailboxes at a server, ours or one of the Rust system --------------*/

/* A message fetched from a mailbox. */
typedef struct opcomms_mail {
    uint64_t uid;            /* its number in that store, for the acknowledgement */
    uint64_t bytes;          /* its size, also when it did not fit */
    uint32_t flags;          /* OPCOMMS_MESSAGE_TEXT */
    uint32_t reserved;
    opcomms_identifier from; /* whose key the server saw */
} opcomms_mail;

typedef struct opcomms_client opcomms_client;

/* A channel of `peer` to the mailbox server with key `hash` at `address`. Does not connect: the
   first call does, and every call does it again when needed; a connection that was silent for 30 s
   is asked before it is trusted. The peer, which may be one that only sends (OPCOMMS_NO_LISTEN and
   OPCOMMS_MEMORY_STORE), must outlive the client. OPCOMMS_E_INVAL, _ADDRESS, _NOMEM. Any thread. */
OPCOMMS_API opcomms_err opcomms_client_open(opcomms_peer *peer, const char *hash,
                                            const char *address, opcomms_client **out,
                                            opcomms_error *err);

/* The calls below may be made from several threads at once, not from a callback (OPCOMMS_E_BUSY).
   They block up to timeout_ms (0: the configured default) and share the errors of opcomms_send. */

/* Puts data into mailbox `to` at the server, from our own mailbox `from_id`. flags:
   OPCOMMS_MESSAGE_TEXT sends the data, which must be UTF-8 then, as the text itself; otherwise it
   travels as a byte array. OPCOMMS_E_ROUTE: the server's routing table refuses. */
OPCOMMS_API opcomms_err opcomms_client_send(opcomms_client *client, uint8_t from_id,
                                            const opcomms_identifier *to, const void *data,
                                            size_t len, uint32_t flags, uint32_t timeout_ms,
                                            opcomms_error *err);
/* Copies the oldest message of our mailbox `id` there; it stays until it is acknowledged.
   OPCOMMS_E_EMPTY: none. OPCOMMS_E_BUFFER: mail->bytes tells the size needed. */
OPCOMMS_API opcomms_err opcomms_client_get(opcomms_client *client, uint8_t id, opcomms_mail *mail,
                                           void *buf, size_t cap, uint32_t timeout_ms,
                                           opcomms_error *err);
/* Removes message `uid` from our mailbox `id` there. OPCOMMS_E_NOT_FOUND: it is not there (any
   more), or, with a memory store of the Rust system, not the oldest. */
OPCOMMS_API opcomms_err opcomms_client_ack(opcomms_client *client, uint8_t id, uint64_t uid,
                                           uint32_t timeout_ms, opcomms_error *err);
/* Get, then ack. When the ack fails its error is returned and the message may come again. */
OPCOMMS_API opcomms_err opcomms_client_recv(opcomms_client *client, uint8_t id, opcomms_mail *mail,
                                            void *buf, size_t cap, uint32_t timeout_ms,
                                            opcomms_error *err);
OPCOMMS_API opcomms_err opcomms_client_ping(opcomms_client *client, uint32_t timeout_ms,
                                            opcomms_error *err);
/* Frees the channel; its connection stays with the peer for others. No call may be under way. NULL
   is allowed. */
OPCOMMS_API void opcomms_client_close(opcomms_client *client);

/* The same for a component in the server's own process, without a network: under the peer's own
   identity and by its own routing table. opcomms_local_send returns when the message is stored as
   durably as configured: OPCOMMS_E_INVAL, _ROUTE, _FULL, _LIMIT, _NOMEM, _POISONED, _CLOSED, _BUSY
   (callback), _UNKNOWN_OUTCOME (stop came while it was synced). The others: OPCOMMS_E_EMPTY,
   _BUFFER, _NOT_FOUND as their opcomms_client_ twins, and those of opcomms_message_read and
   opcomms_ack; they block for no peer. Any thread. */
OPCOMMS_API opcomms_err opcomms_local_send(opcomms_peer *peer, uint8_t from_id,
                                           const opcomms_identifier *to, const void *data,
                                           size_t len, uint32_t flags, opcomms_error *err);
OPCOMMS_API opcomms_err opcomms_local_get(opcomms_peer *peer, uint8_t id, opcomms_mail *mail,
                                          void *buf, size_t cap, opcomms_error *err);
OPCOMMS_API opcomms_err opcomms_local_ack(opcomms_peer *peer, uint8_t id, uint64_t uid,
                                          opcomms_error *err);
OPCOMMS_API opcomms_err opcomms_local_recv(opcomms_peer *peer, uint8_t id, opcomms_mail *mail,
                                           void *buf, size_t cap, opcomms_error *err);

/* For moving a mailbox here, message by message: stores `mail`, as opcomms_client_get or
   opcomms_local_get gave it, with its data of mail->bytes bytes, into our own mailbox `id`, under
   the sender that mail->from names. No routing table is asked: the server it comes from did.
   Returns when it is stored as durably as configured; acknowledge it there only then. When that
   acknowledgement fails, the message is here and comes again: a duplicate. mail->uid is not kept.
   OPCOMMS_E_INVAL: the sender's hash is not one; else the errors of opcomms_local_send but _ROUTE.
   Any thread. */
OPCOMMS_API opcomms_err opcomms_local_import(opcomms_peer *peer, uint8_t id,
                                             const opcomms_mail *mail, const void *data,
                                             opcomms_error *err);

/* Ends the work: no new connection or message is accepted, what is under way is finished (bounded
   by 2 seconds), close_notify is sent, the log is synced, port and lock are released. Callers that
   wait get OPCOMMS_E_CLOSED. Messages handed out stay valid for release only. Idempotent. Any
   thread but a callback (OPCOMMS_E_BUSY). Returns the first storage error, if any. */
OPCOMMS_API opcomms_err opcomms_stop(opcomms_peer *peer);

/* Stops when needed and frees. No other call may be under way or follow. NULL is allowed. */
OPCOMMS_API void opcomms_free(opcomms_peer *peer);

/* ---- a log without its peer ------------------------------------------------------------------ */

/* What a log file holds. Numbers are counts unless they say otherwise. */
typedef struct opcomms_log_report {
    uint32_t size;         /* set by the caller to sizeof(opcomms_log_report) */
    uint32_t flags;        /* OPCOMMS_REPORT_... */
    char hash[65];         /* of the key it belongs to */
    uint16_t major;        /* version of its format */
    uint16_t minor;
    int64_t created_s;     /* seconds since 1970 */
    uint64_t opened;       /* how often it was opened, about */
    uint64_t bytes;        /* of the file, with zeros written ahead */
    uint64_t synced;       /* offset: everything below was on the disk */
    uint64_t bad_at;       /* offset of the first damage, or 0 */
    uint64_t bad_parts;    /* runs of bytes that are no valid batch, where they were looked for */
    uint64_t bad_bytes;    /* in them */
    uint64_t tail_bytes;   /* of unfinished writes: opening cuts them off, which is no damage */
    uint64_t batches;      /* valid ones */
    uint64_t messages;     /* stored, of any kind, also those that are over since */
    uint64_t acknowledged; /* that are over: received and acknowledged; queued and delivered,
                              cancelled or taken from the dead letters */
    uint64_t unread;       /* received, neither acknowledged nor broken */
    uint64_t unread_bytes; /* their payload */
    uint64_t salvaged;     /* not over, in a bad part, but valid themselves */
    uint64_t broken;       /* not over, and their payload is damaged */
    uint64_t number_last;  /* the highest number of a message that is taken */
    uint64_t queued;       /* to be sent */
    uint64_t queued_bytes; /* their payload */
    uint64_t dead_letters;
    uint64_t dead_letter_bytes; /* their payload */
    uint64_t notes;             /* small records of the peer: numbers seen, openings, and so on */
} opcomms_log_report;

#define OPCOMMS_REPORT_IN_USE 1u /* a peer has it open now: the numbers are of one moment */
#define OPCOMMS_REPORT_CLOSED 2u /* its last peer closed it, all is synced */
#define OPCOMMS_REPORT_NEW 4u    /* nothing is in it yet */
#define OPCOMMS_REPORT_HEADER 8u /* one of the header's two copies is damaged: opening mends that */
#define OPCOMMS_REPORT_ENCRYPTED 16u /* without its secret only batches can be looked at: what
                                        counts messages and notes is 0 then */

/* An encrypted log: verify looks at its batches, which need no secret; dump and repair return
   OPCOMMS_E_ENCRYPTED. */

/* Reads a log and checks everything in it, as opening would and beyond: OPCOMMS_OK says that a peer
   opens it and can hand out all that is unread. Changes nothing and takes no lock, so a peer may
   have it open. The report (may be NULL) is filled in as far as the log could be read, also on
   failure. OPCOMMS_E_LOG_DAMAGED: err->position tells where; opcomms_log_repair is for that.
   Others: OPCOMMS_E_LOG_VERSION, _NOT_FOUND, _IO, _NOMEM. Any thread; blocks while it reads. */
OPCOMMS_API opcomms_err opcomms_log_verify(const char *path, opcomms_log_report *report,
                                           opcomms_error *err);

#define OPCOMMS_ENTRY_UNREAD 0u       /* or queued, or a dead letter: see kind */
#define OPCOMMS_ENTRY_ACKNOWLEDGED 1u /* it is over */
#define OPCOMMS_ENTRY_SALVAGED 2u     /* not over; in a bad part, but valid itself */
#define OPCOMMS_ENTRY_BROKEN 3u       /* not over; its payload is damaged */

#define OPCOMMS_ENTRY_RECEIVED 0u
#define OPCOMMS_ENTRY_QUEUED 1u
#define OPCOMMS_ENTRY_DEAD_LETTER 2u

/* A message in a log. Pointers are valid during the call that tells of it. */
typedef struct opcomms_log_entry {
    uint32_t state; /* OPCOMMS_ENTRY_... */
    uint32_t flags; /* OPCOMMS_MESSAGE_TEXT */
    uint64_t number;
    uint64_t bytes;
    uint64_t offset; /* in the file */
    int64_t time_s;  /* when it was stored, seconds since 1970 */
    opcomms_identifier from;
    const char *to; /* the identity it is for: any bytes, no NUL behind */
    size_t to_len;
    uint8_t to_id;
    void *handle; /* for opcomms_log_entry_read */
    uint32_t kind;     /* OPCOMMS_ENTRY_RECEIVED, _QUEUED or _DEAD_LETTER */
    uint32_t attempts; /* to deliver it, so far */
    int32_t code;      /* an opcomms_err: why the last one failed */
    char server[65];   /* hash of the key it is to be delivered to; empty: received */
    int64_t dead_s;    /* since when it is a dead letter */
    const void *context; /* what opcomms_enqueue was given with it */
    size_t context_len;
} opcomms_log_entry;

/* Told of one message; anything but 0 ends the listing. */
typedef int (*opcomms_log_entry_fn)(void *user, const opcomms_log_entry *entry);

/* Tells `callback` of every message in a log, ascending by number, acknowledged ones as long as
   they are still in the file. As opcomms_log_verify otherwise, which is made first: when that finds
   damage, what is left is told and then OPCOMMS_E_LOG_DAMAGED returned. The callback is called
   without a lock, on this thread. */
OPCOMMS_API opcomms_err opcomms_log_dump(const char *path, opcomms_log_entry_fn callback,
                                         void *user, opcomms_error *err);

/* Within that callback: the payload from `offset` on; *got 0 at its end. */
OPCOMMS_API opcomms_err opcomms_log_entry_read(const opcomms_log_entry *entry, uint64_t offset,
                                               void *buf, size_t len, size_t *got);

/* Salvages a log into a new one at `out_path`, in the same format for the same key: every message
   that is unread, queued or a dead letter and whose checksums are right, from valid batches and
   from within damaged ones, under its own number; and from valid batches what else the peer has to
   know, such as the numbers of messages it had seen. The old file is not changed. Not taken along:
   the payload of messages that are over, and messages that are broken (report->broken). A message
   whose acknowledgement lay in a damaged part comes again; one whose failure lay there is queued
   as before. The new log appears under its name when it is complete, synced and checked. The old
   one is locked meanwhile: OPCOMMS_E_IN_USE when a peer has it open, or when out_path exists.
   OPCOMMS_E_LOG_DAMAGED: both copies of its header are gone. OPCOMMS_E_LOG_VERSION: it holds what
   only a newer version understands; OPCOMMS_E_LIMIT: a message beyond OPCOMMS_MAX_FRAME;
   OPCOMMS_E_EMPTY: it was never begun. Disk and memory as opcomms_log_verify, and the report is of
   the old log. Any thread; blocks. */
OPCOMMS_API opcomms_err opcomms_log_repair(const char *path, const char *out_path,
                                           opcomms_log_report *report, opcomms_error *err);

#ifdef __cplusplus
}
#endif

#endif /* OPCOMMS_H */

/* ==== Stop here if you only use the library: the implementation follows. ==== */

#if defined(OPCOMMS_IMPLEMENTATION) && !defined(OPCOMMS_IMPLEMENTED)
#define OPCOMMS_IMPLEMENTED

#ifdef __cplusplus
extern "C" {
#endif

/* >>cfg ==== L0 ==== compile-time configuration, language helpers */

#include <string.h>

#if defined(__GNUC__) || defined(__clang__)
#define OPC__FN static __attribute__((unused))
#else
#define OPC__FN static
#endif

#ifndef OPCOMMS_ASSERT
#include <assert.h>
#define OPCOMMS_ASSERT(condition) assert(condition)
#endif

#define OPC__STATIC_ASSERT(name, condition) \
    typedef char opc__static_assert_##name[(condition) ? 1 : -1]

#ifndef OPCOMMS_MAX_FRAME
#define OPCOMMS_MAX_FRAME 8388608u /* PROTOCOL: payload of one frame, 8 MiB, inclusive */
#endif
OPC__STATIC_ASSERT(max_frame, OPCOMMS_MAX_FRAME >= 1024u && OPCOMMS_MAX_FRAME <= 0x6400000u);

/* >>str ==== L0 ==== text without stdio or locale: builder, numbers, hex, comparison */

/* Builds text in a caller's buffer; always NUL-terminated, cut silently at the end because it is
   only used where cutting is harmless, or `cut` is checked. */
typedef struct opc__text {
    char *p;
    size_t cap;
    size_t len;
    int cut;
} opc__text;

OPC__FN void opc__text_init(opc__text *t, char *p, size_t cap) {
    OPCOMMS_ASSERT(p != NULL);
    OPCOMMS_ASSERT(cap > 0);
    t->p = p;
    t->cap = cap;
    t->len = 0;
    t->cut = 0;
    p[0] = 0;
}

OPC__FN void opc__text_bytes(opc__text *t, const char *s, size_t n) {
    if (n > t->cap - 1 - t->len) {
        n = t->cap - 1 - t->len;
        t->cut = 1;
    }
    if (n > 0) memcpy(t->p + t->len, s, n);
    t->len += n;
    t->p[t->len] = 0;
    OPCOMMS_ASSERT(t->len < t->cap);
}

OPC__FN void opc__text_str(opc__text *t, const char *s) { opc__text_bytes(t, s, strlen(s)); }

OPC__FN void opc__text_u64(opc__text *t, uint64_t v) {
    char digits[20];
    size_t i = sizeof digits;
    do {
        digits[--i] = (char)('0' + (int)(v % 10u));
        v /= 10u;
    } while (v != 0);
    opc__text_bytes(t, digits + i, sizeof digits - i);
}

OPC__FN void opc__text_i64(opc__text *t, int64_t v) {
    uint64_t u = (uint64_t)v;
    if (v < 0) {
        opc__text_bytes(t, "-", 1);
        u = (uint64_t)0 - u;
    }
    opc__text_u64(t, u);
}

OPC__FN void opc__text_hex(opc__text *t, const uint8_t *p, size_t n) {
    static const char hex[] = "0123456789abcdef";
    char digits[64]; /* a whole key hash at once */
    while (n > 0) {
        size_t some = n < 32 ? n : 32, i;
        for (i = 0; i < some; i++) {
            digits[2 * i] = hex[p[i] >> 4];
            digits[2 * i + 1] = hex[p[i] & 15u];
        }
        opc__text_bytes(t, digits, 2 * some);
        p += some;
        n -= some;
    }
}

OPC__FN int opc__str_hex_value(int c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* The 64 lower-case digits of a key hash into 32 bytes; 0 when it is anything else. Upper case is
   refused because the reference compares hashes byte for byte as text. */
OPC__FN int opc__str_hash_parse(const char *s, size_t len, uint8_t out[32]) {
    uint8_t tmp[32];
    size_t i;
    if (len != 64) return 0;
    for (i = 0; i < 32; i++) {
        int hi = opc__str_hex_value((unsigned char)s[2 * i]);
        int lo = opc__str_hex_value((unsigned char)s[2 * i + 1]);
        if (hi < 0 || lo < 0) return 0;
        if (s[2 * i] >= 'A' && s[2 * i] <= 'F') return 0;
        if (s[2 * i + 1] >= 'A' && s[2 * i + 1] <= 'F') return 0;
        tmp[i] = (uint8_t)(hi * 16 + lo);
    }
    memcpy(out, tmp, 32);
    return 1;
}

OPC__FN void opc__str_hash_write(const uint8_t hash[32], char out[65]) {
    opc__text t;
    opc__text_init(&t, out, 65);
    opc__text_hex(&t, hash, 32);
    OPCOMMS_ASSERT(t.len == 64);
}

/* Time does not depend on the content. */
OPC__FN int opc__str_equal_ct(const uint8_t *a, const uint8_t *b, size_t n) {
    unsigned diff = 0;
    size_t i;
    for (i = 0; i < n; i++) diff |= (unsigned)(a[i] ^ b[i]);
    return diff == 0;
}

/* Strictly valid UTF-8 (RFC 3629): no overlong form, no surrogate, nothing above U+10FFFF. */
OPC__FN int opc__str_utf8_valid(const uint8_t *p, size_t n) {
    size_t i = 0;
    while (i < n) {
        unsigned c = p[i];
        size_t more;
        unsigned lo = 0x80, hi = 0xbf;
        if (c < 0x80) {
            i++;
            continue;
        }
        if (c >= 0xc2 && c <= 0xdf) {
            more = 1;
        } else if (c >= 0xe0 && c <= 0xef) {
            more = 2;
            if (c == 0xe0) lo = 0xa0;
            if (c == 0xed) hi = 0x9f;
        } else if (c >= 0xf0 && c <= 0xf4) {
            more = 3;
            if (c == 0xf0) lo = 0x90;
            if (c == 0xf4) hi = 0x8f;
        } else {
            return 0;
        }
        if (more > n - i - 1) return 0;
        if (p[i + 1] < lo || p[i + 1] > hi) return 0;
        if (more > 1 && (p[i + 2] & 0xc0u) != 0x80) return 0;
        if (more > 2 && (p[i + 3] & 0xc0u) != 0x80) return 0;
        i += more + 1;
    }
    return 1;
}

/* Decimal digits only, no sign, at least one; 0 when not a number or above max. */
OPC__FN int opc__str_u64(const char *s, size_t len, uint64_t max, uint64_t *out) {
    uint64_t v = 0;
    size_t i;
    if (len == 0) return 0;
    for (i = 0; i < len; i++) {
        unsigned d;
        if (s[i] < '0' || s[i] > '9') return 0;
        d = (unsigned)(s[i] - '0');
        if (v > (UINT64_MAX - d) / 10u) return 0;
        v = v * 10u + d;
    }
    if (v > max) return 0;
    *out = v;
    return 1;
}

/* >>err ==== L0 ==== error texts and the detail struct */

OPC__FN const char *opc__err_text(opcomms_err code) {
    switch (code) {
#define OPCOMMS__X(name, value, severity, text) \
    case name: return text;
        OPCOMMS_ERRORS(OPCOMMS__X)
#undef OPCOMMS__X
    case OPCOMMS_E_LAST_: break;
    }
    return "unknown error";
}

/* Starts a detail: code and its text. Returns a builder positioned after "text" so that a caller
   may add ": more". err may be NULL. */
OPC__FN opcomms_err opc__err_set(opcomms_error *err, opcomms_err code, int os_code,
                                 const char *more) {
    opc__text t;
    if (err == NULL) return code;
    memset(err, 0, sizeof *err);
    err->code = code;
    err->os_code = os_code;
    opc__text_init(&t, err->text, sizeof err->text);
    opc__text_str(&t, opc__err_text(code));
    if (more != NULL && more[0] != 0) {
        opc__text_str(&t, ": ");
        opc__text_str(&t, more);
    }
    if (os_code != 0) {
        opc__text_str(&t, " (os error ");
        opc__text_i64(&t, os_code);
        opc__text_str(&t, ")");
    }
    return code;
}

/* The same for a text file: "line 3: more". */
OPC__FN opcomms_err opc__err_line(opcomms_error *err, opcomms_err code, uint32_t line,
                                  const char *more) {
    opc__text t;
    char buf[160];
    opc__text_init(&t, buf, sizeof buf);
    opc__text_str(&t, "line ");
    opc__text_u64(&t, line);
    opc__text_str(&t, ": ");
    opc__text_str(&t, more);
    (void)opc__err_set(err, code, 0, buf);
    if (err != NULL) err->line = line;
    return code;
}

/* >>mem ==== L0 ==== the caller's allocator, counted against a limit; wiping */

typedef struct opc__mem {
    void *(*alloc)(void *user, size_t bytes);
    void (*release)(void *user, void *p, size_t bytes);
    void *user;
    size_t used;
    size_t limit; /* 0: none */
} opc__mem;

/* NULL when the limit or the memory is exhausted. The bytes are whatever they were: for large
   buffers that are written before they are read, whose unused pages then cost nothing. */
OPC__FN void *opc__mem_raw(opc__mem *m, size_t bytes) {
    void *p;
    OPCOMMS_ASSERT(bytes > 0);
    OPCOMMS_ASSERT(m->alloc != NULL);
    if (m->limit != 0 && (m->used > m->limit || bytes > m->limit - m->used)) return NULL;
    p = m->alloc(m->user, bytes);
    if (p != NULL) m->used += bytes;
    return p;
}

/* The same, and the bytes are zero. */
OPC__FN void *opc__mem_alloc(opc__mem *m, size_t bytes) {
    void *p = opc__mem_raw(m, bytes);
    if (p != NULL) memset(p, 0, bytes);
    return p;
}

OPC__FN void *opc__mem_array(opc__mem *m, size_t count, size_t bytes) {
    if (count == 0 || bytes == 0 || count > SIZE_MAX / bytes) return NULL;
    return opc__mem_alloc(m, count * bytes);
}

OPC__FN void opc__mem_free(opc__mem *m, void *p, size_t bytes) {
    if (p == NULL) return;
    OPCOMMS_ASSERT(m->used >= bytes);
    m->used -= bytes;
    m->release(m->user, p, bytes);
}

/* Survives the optimiser: the writes are volatile. */
OPC__FN void opc__mem_wipe(void *p, size_t bytes) {
    volatile uint8_t *v = (volatile uint8_t *)p;
    while (bytes-- > 0) *v++ = 0;
}

OPC__FN void opc__mem_free_wiped(opc__mem *m, void *p, size_t bytes) {
    if (p == NULL) return;
    opc__mem_wipe(p, bytes);
    opc__mem_free(m, p, bytes);
}

/* >>buf ==== L0 ==== integers byte by byte, bounded cursors */

OPC__FN uint32_t opc__buf_be16(const uint8_t *p) { return ((uint32_t)p[0] << 8) | p[1]; }
OPC__FN uint32_t opc__buf_be32(const uint8_t *p) {
    return ((uint32_t)p[0] << 24) | ((uint32_t)p[1] << 16) | ((uint32_t)p[2] << 8) | p[3];
}
OPC__FN uint64_t opc__buf_be64(const uint8_t *p) {
    return ((uint64_t)opc__buf_be32(p) << 32) | opc__buf_be32(p + 4);
}
OPC__FN void opc__buf_put16(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}
OPC__FN void opc__buf_put32(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}
OPC__FN void opc__buf_put64(uint8_t *p, uint64_t v) {
    opc__buf_put32(p, (uint32_t)(v >> 32));
    opc__buf_put32(p + 4, (uint32_t)v);
}

/* Reads consume or set `bad` and answer zero; `bad` stays. */
typedef struct opc__rd {
    const uint8_t *p;
    const uint8_t *end;
    int bad;
} opc__rd;

OPC__FN void opc__rd_init(opc__rd *r, const void *p, size_t n) {
    r->p = (const uint8_t *)p;
    r->end = r->p + n;
    r->bad = 0;
}
OPC__FN size_t opc__rd_left(const opc__rd *r) { return (size_t)(r->end - r->p); }
OPC__FN const uint8_t *opc__rd_bytes(opc__rd *r, size_t n) {
    const uint8_t *p = r->p;
    if (r->bad || n > opc__rd_left(r)) {
        r->bad = 1;
        return NULL;
    }
    r->p += n;
    return p;
}
OPC__FN uint32_t opc__rd_u8(opc__rd *r) {
    const uint8_t *p = opc__rd_bytes(r, 1);
    return p ? p[0] : 0;
}
OPC__FN uint32_t opc__rd_u16(opc__rd *r) {
    const uint8_t *p = opc__rd_bytes(r, 2);
    return p ? opc__buf_be16(p) : 0;
}
OPC__FN uint32_t opc__rd_u32(opc__rd *r) {
    const uint8_t *p = opc__rd_bytes(r, 4);
    return p ? opc__buf_be32(p) : 0;
}
OPC__FN uint64_t opc__rd_u64(opc__rd *r) {
    const uint8_t *p = opc__rd_bytes(r, 8);
    return p ? opc__buf_be64(p) : 0;
}

/* Writes append or set `full` and write nothing more. */
typedef struct opc__wr {
    uint8_t *base;
    uint8_t *p;
    uint8_t *end;
    int full;
} opc__wr;

OPC__FN void opc__wr_init(opc__wr *w, void *p, size_t cap) {
    w->base = (uint8_t *)p;
    w->p = w->base;
    w->end = w->base + cap;
    w->full = 0;
}
OPC__FN size_t opc__wr_len(const opc__wr *w) { return (size_t)(w->p - w->base); }
OPC__FN size_t opc__wr_room(const opc__wr *w) { return w->full ? 0 : (size_t)(w->end - w->p); }
OPC__FN void opc__wr_bytes(opc__wr *w, const void *s, size_t n) {
    if (n > opc__wr_room(w)) {
        w->full = 1;
        return;
    }
    if (n > 0) memcpy(w->p, s, n);
    w->p += n;
}
OPC__FN void opc__wr_u8(opc__wr *w, uint32_t v) {
    uint8_t b = (uint8_t)v;
    opc__wr_bytes(w, &b, 1);
}
OPC__FN void opc__wr_u16(opc__wr *w, uint32_t v) {
    uint8_t b[2];
    opc__buf_put16(b, v);
    opc__wr_bytes(w, b, 2);
}
OPC__FN void opc__wr_u32(opc__wr *w, uint32_t v) {
    uint8_t b[4];
    opc__buf_put32(b, v);
    opc__wr_bytes(w, b, 4);
}
OPC__FN void opc__wr_u64(opc__wr *w, uint64_t v) {
    uint8_t b[8];
    opc__buf_put64(b, v);
    opc__wr_bytes(w, b, 8);
}

/* >>crc ==== L0 ==== CRC-32C (RFC 3720 B.4), by hardware where there is one */

OPC__FN uint32_t opc__crc_soft(uint32_t crc, const uint8_t *p, size_t n) {
    static const uint32_t table[256] = {
    0x00000000u, 0xf26b8303u, 0xe13b70f7u, 0x1350f3f4u, 0xc79a971fu, 0x35f1141cu, 0x26a1e7e8u,
    0xd4ca64ebu, 0x8ad958cfu, 0x78b2dbccu, 0x6be22838u, 0x9989ab3bu, 0x4d43cfd0u, 0xbf284cd3u,
    0xac78bf27u, 0x5e133c24u, 0x105ec76fu, 0xe235446cu, 0xf165b798u, 0x030e349bu, 0xd7c45070u,
    0x25afd373u, 0x36ff2087u, 0xc494a384u, 0x9a879fa0u, 0x68ec1ca3u, 0x7bbcef57u, 0x89d76c54u,
    0x5d1d08bfu, 0xaf768bbcu, 0xbc267848u, 0x4e4dfb4bu, 0x20bd8edeu, 0xd2d60dddu, 0xc186fe29u,
    0x33ed7d2au, 0xe72719c1u, 0x154c9ac2u, 0x061c6936u, 0xf477ea35u, 0xaa64d611u, 0x580f5512u,
    0x4b5fa6e6u, 0xb93425e5u, 0x6dfe410eu, 0x9f95c20du, 0x8cc531f9u, 0x7eaeb2fau, 0x30e349b1u,
    0xc288cab2u, 0xd1d83946u, 0x23b3ba45u, 0xf779deaeu, 0x05125dadu, 0x1642ae59u, 0xe4292d5au,
    0xba3a117eu, 0x4851927du, 0x5b016189u, 0xa96ae28au, 0x7da08661u, 0x8fcb0562u, 0x9c9bf696u,
    0x6ef07595u, 0x417b1dbcu, 0xb3109ebfu, 0xa0406d4bu, 0x522bee48u, 0x86e18aa3u, 0x748a09a0u,
    0x67dafa54u, 0x95b17957u, 0xcba24573u, 0x39c9c670u, 0x2a993584u, 0xd8f2b687u, 0x0c38d26cu,
    0xfe53516fu, 0xed03a29bu, 0x1f682198u, 0x5125dad3u, 0xa34e59d0u, 0xb01eaa24u, 0x42752927u,
    0x96bf4dccu, 0x64d4cecfu, 0x77843d3bu, 0x85efbe38u, 0xdbfc821cu, 0x2997011fu, 0x3ac7f2ebu,
    0xc8ac71e8u, 0x1c661503u, 0xee0d9600u, 0xfd5d65f4u, 0x0f36e6f7u, 0x61c69362u, 0x93ad1061u,
    0x80fde395u, 0x72966096u, 0xa65c047du, 0x5437877eu, 0x4767748au, 0xb50cf789u, 0xeb1fcbadu,
    0x197448aeu, 0x0a24bb5au, 0xf84f3859u, 0x2c855cb2u, 0xdeeedfb1u, 0xcdbe2c45u, 0x3fd5af46u,
    0x7198540du, 0x83f3d70eu, 0x90a324fau, 0x62c8a7f9u, 0xb602c312u, 0x44694011u, 0x5739b3e5u,
    0xa55230e6u, 0xfb410cc2u, 0x092a8fc1u, 0x1a7a7c35u, 0xe811ff36u, 0x3cdb9bddu, 0xceb018deu,
    0xdde0eb2au, 0x2f8b6829u, 0x82f63b78u, 0x709db87bu, 0x63cd4b8fu, 0x91a6c88cu, 0x456cac67u,
    0xb7072f64u, 0xa457dc90u, 0x563c5f93u, 0x082f63b7u, 0xfa44e0b4u, 0xe9141340u, 0x1b7f9043u,
    0xcfb5f4a8u, 0x3dde77abu, 0x2e8e845fu, 0xdce5075cu, 0x92a8fc17u, 0x60c37f14u, 0x73938ce0u,
    0x81f80fe3u, 0x55326b08u, 0xa759e80bu, 0xb4091bffu, 0x466298fcu, 0x1871a4d8u, 0xea1a27dbu,
    0xf94ad42fu, 0x0b21572cu, 0xdfeb33c7u, 0x2d80b0c4u, 0x3ed04330u, 0xccbbc033u, 0xa24bb5a6u,
    0x502036a5u, 0x4370c551u, 0xb11b4652u, 0x65d122b9u, 0x97baa1bau, 0x84ea524eu, 0x7681d14du,
    0x2892ed69u, 0xdaf96e6au, 0xc9a99d9eu, 0x3bc21e9du, 0xef087a76u, 0x1d63f975u, 0x0e330a81u,
    0xfc588982u, 0xb21572c9u, 0x407ef1cau, 0x532e023eu, 0xa145813du, 0x758fe5d6u, 0x87e466d5u,
    0x94b49521u, 0x66df1622u, 0x38cc2a06u, 0xcaa7a905u, 0xd9f75af1u, 0x2b9cd9f2u, 0xff56bd19u,
    0x0d3d3e1au, 0x1e6dcdeeu, 0xec064eedu, 0xc38d26c4u, 0x31e6a5c7u, 0x22b65633u, 0xd0ddd530u,
    0x0417b1dbu, 0xf67c32d8u, 0xe52cc12cu, 0x1747422fu, 0x49547e0bu, 0xbb3ffd08u, 0xa86f0efcu,
    0x5a048dffu, 0x8ecee914u, 0x7ca56a17u, 0x6ff599e3u, 0x9d9e1ae0u, 0xd3d3e1abu, 0x21b862a8u,
    0x32e8915cu, 0xc083125fu, 0x144976b4u, 0xe622f5b7u, 0xf5720643u, 0x07198540u, 0x590ab964u,
    0xab613a67u, 0xb831c993u, 0x4a5a4a90u, 0x9e902e7bu, 0x6cfbad78u, 0x7fab5e8cu, 0x8dc0dd8fu,
    0xe330a81au, 0x115b2b19u, 0x020bd8edu, 0xf0605beeu, 0x24aa3f05u, 0xd6c1bc06u, 0xc5914ff2u,
    0x37faccf1u, 0x69e9f0d5u, 0x9b8273d6u, 0x88d28022u, 0x7ab90321u, 0xae7367cau, 0x5c18e4c9u,
    0x4f48173du, 0xbd23943eu, 0xf36e6f75u, 0x0105ec76u, 0x12551f82u, 0xe03e9c81u, 0x34f4f86au,
    0xc69f7b69u, 0xd5cf889du, 0x27a40b9eu, 0x79b737bau, 0x8bdcb4b9u, 0x988c474du, 0x6ae7c44eu,
    0xbe2da0a5u, 0x4c4623a6u, 0x5f16d052u, 0xad7d5351u,
    };
    while (n-- > 0) crc = (crc >> 8) ^ table[(crc ^ *p++) & 0xffu];
    return crc;
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(OPCOMMS_NO_CRC_HARDWARE)
#define OPC__CRC_X86 1
typedef __attribute__((vector_size(16))) long long opc__crc_pair;

/* Three thirds of 3 * lane bytes at a time, because each step of the instruction waits for the one
   before; then the first two are moved on over what follows them. To move a remainder on over n
   zero bytes is to multiply it by x^8n; with the bits reflected the carry-less product is one bit
   short, and the instruction that reduces it multiplies by x^32: so the factor is x^(8n - 33). */
__attribute__((target("sse4.2,pclmul"))) OPC__FN uint32_t opc__crc_thirds(
    uint32_t crc, const uint8_t *p, size_t lane, uint32_t over_one, uint32_t over_two) {
    uint64_t a = crc, b = 0, c = 0, x, y, z;
    opc__crc_pair first = {0, 0}, second = {0, 0}, by = {0, 0};
    size_t i;
    for (i = 0; i < lane; i += 8) {
        memcpy(&x, p + i, 8);
        memcpy(&y, p + lane + i, 8);
        memcpy(&z, p + 2 * lane + i, 8);
        a = __builtin_ia32_crc32di(a, x);
        b = __builtin_ia32_crc32di(b, y);
        c = __builtin_ia32_crc32di(c, z);
    }
    first[0] = (long long)a;
    second[0] = (long long)b;
    by[0] = (long long)over_two;
    by[1] = (long long)over_one;
    first = __builtin_ia32_pclmulqdq128(first, by, 0x00);
    second = __builtin_ia32_pclmulqdq128(second, by, 0x10);
    return (uint32_t)(c ^ __builtin_ia32_crc32di(0, (uint64_t)(first[0] ^ second[0])));
}

__attribute__((target("sse4.2"))) OPC__FN uint32_t opc__crc_x86(uint32_t crc, const uint8_t *p,
                                                                size_t n) {
    uint64_t c = crc;
    if (n >= 192 && __builtin_cpu_supports("pclmul")) {
        for (; n >= 1536; n -= 1536, p += 1536) {
            crc = opc__crc_thirds(crc, p, 512, 0xdd7e3b0cu, 0x170076fau);
        }
        for (; n >= 192; n -= 192, p += 192) {
            crc = opc__crc_thirds(crc, p, 64, 0x9e4addf8u, 0x0d3b6092u);
        }
        c = crc;
    }
    while (n >= 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        c = __builtin_ia32_crc32di(c, v);
        p += 8;
        n -= 8;
    }
    crc = (uint32_t)c;
    while (n-- > 0) crc = __builtin_ia32_crc32qi(crc, *p++);
    return crc;
}
#endif

/* Continues from `seed` (0 for a plain CRC): crc(crc(0, a), b) is the CRC of a followed by b. */
OPC__FN uint32_t opc__crc32c(uint32_t seed, const void *p, size_t n) {
#if defined(OPC__CRC_X86)
    if (__builtin_cpu_supports("sse4.2")) return ~opc__crc_x86(~seed, (const uint8_t *)p, n);
#endif
    return ~opc__crc_soft(~seed, (const uint8_t *)p, n);
}

/* >>posix ==== L1 ==== the platform on POSIX: the only code that calls the operating system */

#if !defined(OPCOMMS_NO_POSIX)

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h> /* renameat is declared there; nothing of stdio is used */
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__) && !defined(OPCOMMS_NO_LINUX)
#include <sys/random.h>
#endif

#ifndef CLOCK_MONOTONIC
#error "opcomms.h: a system header came before the implementation and hid POSIX. \
Include opcomms.h first in the file that defines OPCOMMS_IMPLEMENTATION, \
or compile with -D_POSIX_C_SOURCE=200809L."
#endif
#if defined(F_OFD_SETLK)
#define OPC__POSIX_SETLK F_OFD_SETLK
#define OPC__POSIX_GETLK F_OFD_GETLK
#elif defined(__linux__) && !defined(OPCOMMS_NO_LINUX)
/* A system header that came first hid what only _GNU_SOURCE shows, but the system has it. The
   number is the same on every architecture (linux/fcntl.h). */
#define OPC__POSIX_SETLK 37
#define OPC__POSIX_GETLK 36
int accept4(int sock, struct sockaddr *address, socklen_t *len, int flags);
#else
#define OPC__POSIX_SETLK F_SETLK
#define OPC__POSIX_GETLK F_GETLK
#endif
/* Else a log of more than 2 GiB would be written at wrong places. */
OPC__STATIC_ASSERT(include_opcomms_h_first_or_define_FILE_OFFSET_BITS_64, sizeof(off_t) >= 8);

OPC__FN opcomms_err opc__posix_fail(int *os_code) {
    *os_code = errno;
    switch (errno) {
    case ENOENT: return OPCOMMS_E_NOT_FOUND;
    case EEXIST:
    case EADDRINUSE: return OPCOMMS_E_IN_USE;
    case ENOMEM: return OPCOMMS_E_NOMEM;
    default: return OPCOMMS_E_IO;
    }
}

OPC__FN uint64_t opc__posix_now_us(void *user) {
    struct timespec t;
    (void)user;
    if (clock_gettime(CLOCK_MONOTONIC, &t) != 0) return 0; /* cannot fail for this clock */
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

OPC__FN int64_t opc__posix_wall_s(void *user) {
    struct timespec t;
    (void)user;
    if (clock_gettime(CLOCK_REALTIME, &t) != 0 || t.tv_sec < 0) return 0;
    return (int64_t)t.tv_sec;
}

OPC__FN opcomms_err opc__posix_random(void *user, void *out, size_t len) {
    uint8_t *p = (uint8_t *)out;
    (void)user;
#if defined(__linux__) && !defined(OPCOMMS_NO_LINUX)
    while (len > 0) {
        ssize_t n = getrandom(p, len > 256 ? 256 : len, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        p += n;
        len -= (size_t)n;
    }
    if (len == 0) return OPCOMMS_OK;
#endif
    {
        int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
        if (fd < 0) return OPCOMMS_E_RANDOM;
        while (len > 0) {
            ssize_t n = read(fd, p, len);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) break;
            p += n;
            len -= (size_t)n;
        }
        (void)close(fd); /* read only: nothing to lose */
    }
    return len == 0 ? OPCOMMS_OK : OPCOMMS_E_RANDOM;
}

OPC__FN opcomms_err opc__posix_dir_open(void *user, const char *path, intptr_t *dir, int *os_code) {
    int fd;
    (void)user;
    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return opc__posix_fail(os_code);
    *dir = fd;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__posix_sync_fd(intptr_t fd, int data_only, int *os_code) {
    int r;
#if defined(__APPLE__) && defined(F_FULLFSYNC)
    (void)data_only;
    r = fcntl((int)fd, F_FULLFSYNC);
    if (r != 0) r = fsync((int)fd);
#elif defined(_POSIX_SYNCHRONIZED_IO) && _POSIX_SYNCHRONIZED_IO > 0
    r = data_only ? fdatasync((int)fd) : fsync((int)fd);
#else
    (void)data_only;
    r = fsync((int)fd);
#endif
    return r == 0 ? OPCOMMS_OK : opc__posix_fail(os_code); /* never retried: see >>log */
}

OPC__FN opcomms_err opc__posix_dir_sync(void *user, intptr_t dir, int *os_code) {
    (void)user;
    return opc__posix_sync_fd(dir, 0, os_code);
}

OPC__FN opcomms_err opc__posix_file_sync(void *user, intptr_t file, int *os_code) {
    (void)user;
    return opc__posix_sync_fd(file, 1, os_code);
}

OPC__FN void opc__posix_close(void *user, intptr_t fd) {
    (void)user;
    (void)close((int)fd); /* files are synced before; a socket's close has nothing to report */
}

OPC__FN opcomms_err opc__posix_file_open(void *user, intptr_t dir, const char *name, uint32_t mode,
                                         intptr_t *file, int *os_code) {
    int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    int fd;
    (void)user;
    flags |= (mode & OPCOMMS_FILE_WRITE) ? O_RDWR : O_RDONLY;
    if (mode & OPCOMMS_FILE_CREATE) flags |= O_CREAT;
    if (mode & OPCOMMS_FILE_EXCLUSIVE) flags |= O_EXCL;
    if (mode & OPCOMMS_FILE_PRIVATE) flags |= O_NOFOLLOW;
    do {
        fd = openat((int)dir, name, flags, S_IRUSR | S_IWUSR);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) return opc__posix_fail(os_code);
    {
        struct stat st;
        int ok = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
        if (ok && (mode & OPCOMMS_FILE_PRIVATE)) ok = st.st_uid == geteuid();
        if (!ok) {
            (void)close(fd);
            *os_code = EPERM;
            return OPCOMMS_E_IO;
        }
    }
    *file = fd;
    return OPCOMMS_OK;
}

/* A whole-file write lock of the fcntl family. Linux has one that belongs to the open file, so two
   peers of one process exclude each other too; elsewhere it belongs to the process. */
OPC__FN opcomms_err opc__posix_file_lock(void *user, intptr_t file, int *os_code) {
    struct flock lock;
    int r;
    (void)user;
    memset(&lock, 0, sizeof lock);
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    r = fcntl((int)file, OPC__POSIX_SETLK, &lock);
    if (r == 0) return OPCOMMS_OK;
    if (errno == EACCES || errno == EAGAIN) {
        *os_code = errno;
        return OPCOMMS_E_IN_USE;
    }
    return opc__posix_fail(os_code);
}

OPC__FN int opc__posix_file_locked(void *user, intptr_t file) {
    struct flock lock;
    (void)user;
    memset(&lock, 0, sizeof lock);
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    return fcntl((int)file, OPC__POSIX_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

OPC__FN opcomms_err opc__posix_file_size(void *user, intptr_t file, uint64_t *bytes, int *os_code) {
    struct stat st;
    (void)user;
    if (fstat((int)file, &st) != 0) return opc__posix_fail(os_code);
    *bytes = (uint64_t)st.st_size;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__posix_file_read(void *user, intptr_t file, uint64_t offset, void *buf,
                                         size_t len, size_t *got, int *os_code) {
    ssize_t n;
    (void)user;
    do {
        n = pread((int)file, buf, len, (off_t)offset);
    } while (n < 0 && errno == EINTR);
    if (n < 0) return opc__posix_fail(os_code);
    *got = (size_t)n;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__posix_file_write(void *user, intptr_t file, uint64_t offset,
                                          const void *buf, size_t len, size_t *put, int *os_code) {
    ssize_t n;
    (void)user;
    do {
        n = pwrite((int)file, buf, len, (off_t)offset);
    } while (n < 0 && errno == EINTR);
    if (n < 0) return opc__posix_fail(os_code);
    *put = (size_t)n;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__posix_file_truncate(void *user, intptr_t file, uint64_t bytes,
                                             int *os_code) {
    int r;
    (void)user;
    do {
        r = ftruncate((int)file, (off_t)bytes);
    } while (r != 0 && errno == EINTR);
    return r == 0 ? OPCOMMS_OK : opc__posix_fail(os_code);
}

OPC__FN opcomms_err opc__posix_file_rename(void *user, intptr_t dir, const char *from,
                                           const char *to, int *os_code) {
    (void)user;
    if (renameat((int)dir, from, (int)dir, to) != 0) return opc__posix_fail(os_code);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__posix_file_remove(void *user, intptr_t dir, const char *name,
                                           int *os_code) {
    (void)user;
    if (unlinkat((int)dir, name, 0) != 0) return opc__posix_fail(os_code);
    return OPCOMMS_OK;
}

/* ---- sockets ---- */

typedef union opc__posix_addr {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_storage space;
} opc__posix_addr;

OPC__FN socklen_t opc__posix_addr_to(const opcomms_address *a, opc__posix_addr *s) {
    memset(s, 0, sizeof *s);
    if (a->family == 6) {
        s->v6.sin6_family = AF_INET6;
        s->v6.sin6_port = htons(a->port);
        memcpy(&s->v6.sin6_addr, a->ip, 16);
        return (socklen_t)sizeof s->v6;
    }
    s->v4.sin_family = AF_INET;
    s->v4.sin_port = htons(a->port);
    memcpy(&s->v4.sin_addr, a->ip, 4);
    return (socklen_t)sizeof s->v4;
}

OPC__FN void opc__posix_addr_from(const opc__posix_addr *s, opcomms_address *a) {
    memset(a, 0, sizeof *a);
    if (s->any.sa_family == AF_INET6) {
        a->family = 6;
        a->port = ntohs(s->v6.sin6_port);
        memcpy(a->ip, &s->v6.sin6_addr, 16);
    } else if (s->any.sa_family == AF_INET) {
        a->family = 4;
        a->port = ntohs(s->v4.sin_port);
        memcpy(a->ip, &s->v4.sin_addr, 4);
    }
}

OPC__FN int opc__posix_prepare(int fd) {
    int flags = fcntl(fd, F_GETFL);
    int on = 1;
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return 0;
    flags = fcntl(fd, F_GETFD);
    if (flags < 0 || fcntl(fd, F_SETFD, flags | FD_CLOEXEC) != 0) return 0;
    /* Best effort: a socket without these options still works. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, (socklen_t)sizeof on);
#if defined(SO_NOSIGPIPE)
    (void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, (socklen_t)sizeof on);
#endif
    return 1;
}

OPC__FN int opc__posix_socket(const opcomms_address *a) {
    int family = a->family == 6 ? AF_INET6 : AF_INET;
    int type = SOCK_STREAM;
    int fd;
#if defined(SOCK_CLOEXEC)
    type |= SOCK_CLOEXEC;
#endif
    fd = socket(family, type, 0);
    if (fd >= 0 && !opc__posix_prepare(fd)) {
        (void)close(fd);
        fd = -1;
    }
    return fd;
}

OPC__FN opcomms_err opc__posix_tcp_listen(void *user, const opcomms_address *address,
                                          intptr_t *sock, opcomms_address *bound, int *os_code) {
    opc__posix_addr s;
    socklen_t len = opc__posix_addr_to(address, &s);
    opcomms_err rc;
    int on = 1;
    int fd = opc__posix_socket(address);
    (void)user;
    if (fd < 0) return opc__posix_fail(os_code);
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, (socklen_t)sizeof on) != 0 ||
        bind(fd, &s.any, len) != 0 || listen(fd, 128) != 0) {
        goto fail;
    }
    len = (socklen_t)sizeof s;
    if (getsockname(fd, &s.any, &len) != 0) goto fail;
    opc__posix_addr_from(&s, bound);
    *sock = fd;
    return OPCOMMS_OK;
fail:
    rc = opc__posix_fail(os_code);
    (void)close(fd);
    return rc;
}

OPC__FN opcomms_err opc__posix_tcp_accept(void *user, intptr_t listener, intptr_t *sock,
                                          opcomms_address *peer, int *os_code) {
    opc__posix_addr s;
    socklen_t len = (socklen_t)sizeof s;
    int fd;
    (void)user;
    memset(&s, 0, sizeof s);
    do {
#if defined(__linux__) && !defined(OPCOMMS_NO_LINUX)
        fd = accept4((int)listener, &s.any, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
#else
        fd = accept((int)listener, &s.any, &len);
#endif
    } while (fd < 0 && (errno == EINTR || errno == ECONNABORTED));
    if (fd < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) return OPCOMMS_E_AGAIN;
        return opc__posix_fail(os_code);
    }
    if (!opc__posix_prepare(fd)) {
        opcomms_err rc = opc__posix_fail(os_code);
        (void)close(fd);
        return rc;
    }
    opc__posix_addr_from(&s, peer);
    *sock = fd;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__posix_tcp_connect(void *user, const opcomms_address *address,
                                           intptr_t *sock, int *os_code) {
    opc__posix_addr s;
    socklen_t len = opc__posix_addr_to(address, &s);
    int fd = opc__posix_socket(address);
    (void)user;
    if (fd < 0) return opc__posix_fail(os_code);
    /* EINTR leaves the connection under way, as EINPROGRESS does. */
    if (connect(fd, &s.any, len) != 0 && errno != EINPROGRESS && errno != EINTR) {
        *os_code = errno;
        (void)close(fd);
        return OPCOMMS_E_CONNECT;
    }
    *sock = fd;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__posix_tcp_connected(void *user, intptr_t sock, int *os_code) {
    int code = 0;
    socklen_t len = (socklen_t)sizeof code;
    (void)user;
    if (getsockopt((int)sock, SOL_SOCKET, SO_ERROR, &code, &len) != 0) {
        return opc__posix_fail(os_code);
    }
    if (code == 0) return OPCOMMS_OK;
    *os_code = code;
    return OPCOMMS_E_CONNECT;
}

OPC__FN opcomms_err opc__posix_sock_result(ssize_t n, size_t *out, int *os_code) {
    if (n >= 0) {
        *out = (size_t)n;
        return OPCOMMS_OK;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK) return OPCOMMS_E_AGAIN;
    *os_code = errno;
    return OPCOMMS_E_CLOSED;
}

OPC__FN opcomms_err opc__posix_sock_recv(void *user, intptr_t sock, void *buf, size_t len,
                                         size_t *got, int *os_code) {
    ssize_t n;
    (void)user;
    do {
        n = recv((int)sock, buf, len, 0);
    } while (n < 0 && errno == EINTR);
    return opc__posix_sock_result(n, got, os_code);
}

OPC__FN opcomms_err opc__posix_sock_send(void *user, intptr_t sock, const void *buf, size_t len,
                                         size_t *put, int *os_code) {
    ssize_t n;
    (void)user;
    do {
#if defined(MSG_NOSIGNAL)
        n = send((int)sock, buf, len, MSG_NOSIGNAL);
#else
        n = send((int)sock, buf, len, 0);
#endif
    } while (n < 0 && errno == EINTR);
    return opc__posix_sock_result(n, put, os_code);
}

OPC__FN void opc__posix_sock_shutdown(void *user, intptr_t sock, int both) {
    (void)user;
    (void)shutdown((int)sock, both ? SHUT_RDWR : SHUT_WR); /* fails only when already gone */
}

#ifndef OPC__POSIX_POLL_MAX
#define OPC__POSIX_POLL_MAX 1088 /* connections of a peer and its own two handles */
#endif

OPC__FN opcomms_err opc__posix_wait(void *user, opcomms_pollfd *fds, size_t count,
                                    int32_t timeout_ms, int *os_code) {
    struct pollfd p[OPC__POSIX_POLL_MAX];
    size_t i;
    int r;
    (void)user;
    if (count > OPC__POSIX_POLL_MAX) return OPCOMMS_E_LIMIT;
    for (i = 0; i < count; i++) {
        p[i].fd = (int)fds[i].handle;
        p[i].events = (short)(((fds[i].events & OPCOMMS_POLL_IN) ? POLLIN : 0) |
                              ((fds[i].events & OPCOMMS_POLL_OUT) ? POLLOUT : 0));
        p[i].revents = 0;
        fds[i].revents = 0;
    }
    r = poll(p, (nfds_t)count, timeout_ms);
    if (r < 0 && errno != EINTR) return opc__posix_fail(os_code);
    for (i = 0; r > 0 && i < count; i++) {
        unsigned ev = 0;
        if (p[i].revents & POLLIN) ev |= OPCOMMS_POLL_IN;
        if (p[i].revents & POLLOUT) ev |= OPCOMMS_POLL_OUT;
        if (p[i].revents & (POLLERR | POLLHUP | POLLNVAL)) ev |= OPCOMMS_POLL_ERR;
        fds[i].revents = (uint16_t)ev;
    }
    return OPCOMMS_OK; /* EINTR counts as a wait that ended early */
}

OPC__FN opcomms_err opc__posix_wake_open(void *user, intptr_t wake[2], int *os_code) {
    int fds[2];
    (void)user;
    if (pipe(fds) != 0) return opc__posix_fail(os_code);
    if (fcntl(fds[0], F_SETFD, FD_CLOEXEC) != 0 || fcntl(fds[1], F_SETFD, FD_CLOEXEC) != 0 ||
        fcntl(fds[0], F_SETFL, O_NONBLOCK) != 0 || fcntl(fds[1], F_SETFL, O_NONBLOCK) != 0) {
        opcomms_err rc = opc__posix_fail(os_code);
        (void)close(fds[0]);
        (void)close(fds[1]);
        return rc;
    }
    wake[0] = fds[0];
    wake[1] = fds[1];
    return OPCOMMS_OK;
}

OPC__FN void opc__posix_wake_signal(void *user, intptr_t wake[2]) {
    ssize_t n;
    (void)user;
    do {
        n = write((int)wake[1], "w", 1);
    } while (n < 0 && errno == EINTR); /* a full pipe wakes just as well */
}

OPC__FN void opc__posix_wake_drain(void *user, intptr_t wake[2]) {
    char sink[64];
    ssize_t n;
    (void)user;
    do {
        n = read((int)wake[0], sink, sizeof sink);
    } while (n == (ssize_t)sizeof sink || (n < 0 && errno == EINTR));
}

OPC__FN void opc__posix_wake_close(void *user, intptr_t wake[2]) {
    (void)user;
    (void)close((int)wake[0]);
    (void)close((int)wake[1]);
}

#endif /* OPCOMMS_NO_POSIX */

OPC__FN const opcomms_platform *opc__posix_platform(void) {
#if !defined(OPCOMMS_NO_POSIX)
    static const opcomms_platform posix = {
        (uint32_t)sizeof(opcomms_platform), 0, NULL,
        opc__posix_now_us, opc__posix_wall_s, opc__posix_random,
        opc__posix_dir_open, opc__posix_dir_sync, opc__posix_close,
        opc__posix_file_open, opc__posix_file_lock, opc__posix_file_size, opc__posix_file_read,
        opc__posix_file_write, opc__posix_file_truncate, opc__posix_file_sync, opc__posix_close,
        opc__posix_file_rename, opc__posix_file_remove,
        opc__posix_tcp_listen, opc__posix_tcp_accept, opc__posix_tcp_connect,
        opc__posix_tcp_connected, opc__posix_sock_recv, opc__posix_sock_send,
        opc__posix_sock_shutdown, opc__posix_close,
        opc__posix_wait, opc__posix_wake_open, opc__posix_wake_signal, opc__posix_wake_drain,
        opc__posix_wake_close, opc__posix_file_locked,
    };
    return &posix;
#else
    return NULL;
#endif
}

/* >>plat ==== L1 ==== what every platform user shares: default, paths, whole files */

/* The built-in platform; NULL when OPCOMMS_NO_POSIX left it out. */
OPC__FN const opcomms_platform *opc__plat_default(void) { return opc__posix_platform(); }

/* "a/b/c" into directory "a/b" and name "c"; "c" into "." and "c". E_INVAL: no name, too long. */
OPC__FN opcomms_err opc__plat_split(const char *path, char *dir, size_t dir_cap,
                                    const char **name) {
    size_t len = strlen(path), cut = len;
    while (cut > 0 && path[cut - 1] != '/') cut--;
    if (cut == len) return OPCOMMS_E_INVAL;
    if (cut == 0) {
        if (dir_cap < 2) return OPCOMMS_E_INVAL;
        memcpy(dir, ".", 2);
    } else {
        size_t keep = cut > 1 ? cut - 1 : 1; /* the root stays "/" */
        if (keep >= dir_cap) return OPCOMMS_E_INVAL;
        memcpy(dir, path, keep);
        dir[keep] = 0;
    }
    *name = path + cut;
    return OPCOMMS_OK;
}

#define OPC__PATH_MAX 1024u

/* Is there nothing of that name? OPCOMMS_E_IN_USE: there may be. */
OPC__FN opcomms_err opc__plat_unused(const opcomms_platform *plat, intptr_t dir,
                                     const char *name) {
    intptr_t file = OPCOMMS_NO_HANDLE;
    int os = 0;
    opcomms_err rc = plat->file_open(plat->user, dir, name, 0, &file, &os);
    if (rc == OPCOMMS_OK) plat->file_close(plat->user, file);
    return rc == OPCOMMS_E_NOT_FOUND ? OPCOMMS_OK : OPCOMMS_E_IN_USE;
}

/* Opens path relative to its directory, which stays open in *dir. */
OPC__FN opcomms_err opc__plat_open(const opcomms_platform *plat, const char *path, uint32_t mode,
                                   intptr_t *dir, intptr_t *file, opcomms_error *err) {
    char dir_path[OPC__PATH_MAX];
    const char *name = NULL;
    opcomms_err rc;
    int os = 0;
    if (opc__plat_split(path, dir_path, sizeof dir_path, &name) != OPCOMMS_OK) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "not a usable path");
    }
    rc = plat->dir_open(plat->user, dir_path, dir, &os);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, os, dir_path);
    rc = plat->file_open(plat->user, *dir, name, mode, file, &os);
    if (rc != OPCOMMS_OK) {
        plat->dir_close(plat->user, *dir);
        return opc__err_set(err, rc, os, path);
    }
    return OPCOMMS_OK;
}

/* The whole file into memory from `mem`, with one NUL added behind it. The caller frees
   *buf with opc__mem_free(mem, *buf, *len + 1). OPCOMMS_E_LIMIT when it is larger than max. */
OPC__FN opcomms_err opc__plat_read_file(const opcomms_platform *plat, opc__mem *mem,
                                        const char *path, size_t max, char **buf, size_t *len,
                                        opcomms_error *err) {
    intptr_t dir = OPCOMMS_NO_HANDLE, file = OPCOMMS_NO_HANDLE;
    uint64_t size = 0;
    size_t have = 0;
    char *p = NULL;
    int os = 0;
    opcomms_err rc = opc__plat_open(plat, path, 0, &dir, &file, err);
    if (rc != OPCOMMS_OK) return rc;
    rc = plat->file_size(plat->user, file, &size, &os);
    if (rc != OPCOMMS_OK) {
        (void)opc__err_set(err, rc, os, path);
        goto done;
    }
    if (size > max) {
        rc = opc__err_set(err, OPCOMMS_E_LIMIT, 0, "file too large");
        goto done;
    }
    p = (char *)opc__mem_alloc(mem, (size_t)size + 1);
    if (p == NULL) {
        rc = opc__err_set(err, OPCOMMS_E_NOMEM, 0, path);
        goto done;
    }
    while (have < (size_t)size) {
        size_t got = 0;
        rc = plat->file_read(plat->user, file, have, p + have, (size_t)size - have, &got, &os);
        if (rc == OPCOMMS_OK && got == 0) rc = OPCOMMS_E_IO; /* shrank while it was read */
        if (rc != OPCOMMS_OK) {
            (void)opc__err_set(err, rc, os, path);
            goto done;
        }
        have += got;
    }
    *buf = p;
    *len = have;
done:
    if (rc != OPCOMMS_OK) opc__mem_free_wiped(mem, p, (size_t)size + 1);
    plat->file_close(plat->user, file);
    plat->dir_close(plat->user, dir);
    return rc;
}

OPC__FN opcomms_err opc__plat_write_all(const opcomms_platform *plat, intptr_t file,
                                        uint64_t offset, const void *data, size_t len,
                                        int *os_code) {
    const uint8_t *p = (const uint8_t *)data;
    while (len > 0) {
        size_t put = 0;
        opcomms_err rc = plat->file_write(plat->user, file, offset, p, len, &put, os_code);
        if (rc != OPCOMMS_OK) return rc;
        if (put == 0 || put > len) return OPCOMMS_E_IO;
        p += put;
        offset += put;
        len -= put;
    }
    return OPCOMMS_OK;
}

/* A new file of mode 0600, synced with its directory; OPCOMMS_E_IN_USE when it exists. */
OPC__FN opcomms_err opc__plat_write_file_new(const opcomms_platform *plat, const char *path,
                                             const void *data, size_t len, opcomms_error *err) {
    intptr_t dir = OPCOMMS_NO_HANDLE, file = OPCOMMS_NO_HANDLE;
    int os = 0;
    opcomms_err rc = opc__plat_open(plat, path,
                                    OPCOMMS_FILE_WRITE | OPCOMMS_FILE_CREATE |
                                        OPCOMMS_FILE_EXCLUSIVE | OPCOMMS_FILE_PRIVATE,
                                    &dir, &file, err);
    if (rc != OPCOMMS_OK) return rc;
    rc = opc__plat_write_all(plat, file, 0, data, len, &os);
    if (rc == OPCOMMS_OK) rc = plat->file_sync(plat->user, file, &os);
    if (rc == OPCOMMS_OK) rc = plat->dir_sync(plat->user, dir, &os);
    plat->file_close(plat->user, file);
    if (rc != OPCOMMS_OK) {
        char dir_path[OPC__PATH_MAX];
        const char *name = NULL;
        int ignored = 0;
        if (opc__plat_split(path, dir_path, sizeof dir_path, &name) == OPCOMMS_OK) {
            (void)plat->file_remove(plat->user, dir, name, &ignored); /* the first error counts */
        }
        (void)opc__err_set(err, rc, os, path);
    }
    plat->dir_close(plat->user, dir);
    return rc;
}

/* Replaces path in one step: "path.tmp" written and synced, renamed, directory synced. A reader
   sees the old content or the new. A stale "path.tmp" of a crash is removed first. */
OPC__FN opcomms_err opc__plat_write_file_atomic(const opcomms_platform *plat, const char *path,
                                                const void *data, size_t len, opcomms_error *err) {
    char tmp[OPC__PATH_MAX], dir_path[OPC__PATH_MAX];
    const char *name = NULL, *tmp_name = NULL;
    intptr_t dir = OPCOMMS_NO_HANDLE;
    opc__text t;
    opcomms_err rc;
    int os = 0;
    opc__text_init(&t, tmp, sizeof tmp);
    opc__text_str(&t, path);
    opc__text_str(&t, ".tmp");
    if (t.cut || opc__plat_split(path, dir_path, sizeof dir_path, &name) != OPCOMMS_OK) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "not a usable path");
    }
    rc = plat->dir_open(plat->user, dir_path, &dir, &os);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, os, dir_path);
    tmp_name = tmp + (name - path);
    (void)plat->file_remove(plat->user, dir, tmp_name, &os); /* usually absent */
    rc = opc__plat_write_file_new(plat, tmp, data, len, err);
    if (rc == OPCOMMS_OK) {
        os = 0;
        rc = plat->file_rename(plat->user, dir, tmp_name, name, &os);
        if (rc != OPCOMMS_OK) { /* it may hold a key; the first error counts */
            int ignored = 0;
            (void)plat->file_remove(plat->user, dir, tmp_name, &ignored);
        }
        if (rc == OPCOMMS_OK) rc = plat->dir_sync(plat->user, dir, &os);
        if (rc != OPCOMMS_OK) (void)opc__err_set(err, rc, os, path);
    }
    plat->dir_close(plat->user, dir);
    return rc;
}

/* The default allocator. */
#include <stdlib.h>

OPC__FN void *opc__plat_malloc(void *user, size_t bytes) {
    (void)user;
    return malloc(bytes);
}
OPC__FN void opc__plat_free(void *user, void *p, size_t bytes) {
    (void)user;
    (void)bytes;
    free(p);
}

/* >>thread ==== L1 ==== mutex, condition, thread; empty under OPCOMMS_NO_THREADS */

#if !defined(OPCOMMS_NO_THREADS)
#include <pthread.h>
#include <time.h>

#ifndef CLOCK_MONOTONIC
#error "opcomms.h: a system header came before the implementation and hid POSIX. \
Include opcomms.h first in the file that defines OPCOMMS_IMPLEMENTATION, \
or compile with -D_POSIX_C_SOURCE=200809L."
#endif

typedef struct opc__mutex {
    pthread_mutex_t m;
} opc__mutex;
typedef struct opc__cond {
    pthread_cond_t c;
} opc__cond;
typedef pthread_t opc__thread_id;
typedef struct opc__thread {
    pthread_t t;
    int running;
} opc__thread;

OPC__FN int opc__mutex_init(opc__mutex *m) { return pthread_mutex_init(&m->m, NULL) == 0; }
OPC__FN void opc__mutex_destroy(opc__mutex *m) { (void)pthread_mutex_destroy(&m->m); }
OPC__FN void opc__mutex_lock(opc__mutex *m) {
    int r = pthread_mutex_lock(&m->m);
    OPCOMMS_ASSERT(r == 0);
    (void)r;
}
OPC__FN void opc__mutex_unlock(opc__mutex *m) {
    int r = pthread_mutex_unlock(&m->m);
    OPCOMMS_ASSERT(r == 0);
    (void)r;
}

OPC__FN int opc__cond_init(opc__cond *c) {
    pthread_condattr_t a;
    int ok;
    if (pthread_condattr_init(&a) != 0) return 0;
#if !defined(__APPLE__)
    ok = pthread_condattr_setclock(&a, CLOCK_MONOTONIC) == 0 && pthread_cond_init(&c->c, &a) == 0;
#else
    ok = pthread_cond_init(&c->c, &a) == 0;
#endif
    (void)pthread_condattr_destroy(&a);
    return ok;
}
OPC__FN void opc__cond_destroy(opc__cond *c) { (void)pthread_cond_destroy(&c->c); }
OPC__FN void opc__cond_all(opc__cond *c) { (void)pthread_cond_broadcast(&c->c); }

/* Waits until signalled or `us` microseconds have passed (UINT64_MAX: for ever); may wake early. */
OPC__FN void opc__cond_wait(opc__cond *c, opc__mutex *m, uint64_t us) {
    struct timespec t;
    if (us == UINT64_MAX) {
        (void)pthread_cond_wait(&c->c, &m->m);
        return;
    }
    if (us > 1000000000u) us = 1000000000u; /* the caller loops on its own clock */
#if !defined(__APPLE__)
    if (clock_gettime(CLOCK_MONOTONIC, &t) != 0) return;
#else
    if (clock_gettime(CLOCK_REALTIME, &t) != 0) return;
#endif
    t.tv_sec += (time_t)(us / 1000000u);
    t.tv_nsec += (long)(us % 1000000u) * 1000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_nsec -= 1000000000;
        t.tv_sec += 1;
    }
    (void)pthread_cond_timedwait(&c->c, &m->m, &t); /* a time-out is seen by the caller's clock */
}

OPC__FN int opc__thread_start(opc__thread *t, void *(*run)(void *), void *arg) {
    t->running = pthread_create(&t->t, NULL, run, arg) == 0;
    return t->running;
}
OPC__FN void opc__thread_join(opc__thread *t) {
    if (t->running) (void)pthread_join(t->t, NULL);
    t->running = 0;
}
/* Identifies the calling thread, to refuse a call from inside a callback. */
OPC__FN opc__thread_id opc__thread_self(void) { return pthread_self(); }
OPC__FN int opc__thread_is_self(opc__thread_id t) { return pthread_equal(t, pthread_self()) != 0; }

#else

typedef struct opc__mutex {
    int unused;
} opc__mutex;
typedef struct opc__cond {
    int unused;
} opc__cond;

OPC__FN int opc__mutex_init(opc__mutex *m) {
    m->unused = 0;
    return 1;
}
OPC__FN void opc__mutex_destroy(opc__mutex *m) { (void)m; }
OPC__FN void opc__mutex_lock(opc__mutex *m) { (void)m; }
OPC__FN void opc__mutex_unlock(opc__mutex *m) { (void)m; }
OPC__FN int opc__cond_init(opc__cond *c) {
    c->unused = 0;
    return 1;
}
OPC__FN void opc__cond_destroy(opc__cond *c) { (void)c; }
OPC__FN void opc__cond_all(opc__cond *c) { (void)c; }
OPC__FN void opc__cond_wait(opc__cond *c, opc__mutex *m, uint64_t us) {
    (void)c;
    (void)m;
    (void)us;
}
#endif

/* A counter that is changed under `m` by opc__thread_put64, and read without it where that can be
   done. */
OPC__FN uint64_t opc__thread_get64(uint64_t *v, opc__mutex *m) {
#if defined(__GCC_ATOMIC_LLONG_LOCK_FREE) && __GCC_ATOMIC_LLONG_LOCK_FREE == 2
    (void)m;
    return __atomic_load_n(v, __ATOMIC_ACQUIRE);
#else
    uint64_t now;
    opc__mutex_lock(m);
    now = *v;
    opc__mutex_unlock(m);
    return now;
#endif
}
OPC__FN void opc__thread_put64(uint64_t *v, uint64_t now) {
#if defined(__GCC_ATOMIC_LLONG_LOCK_FREE) && __GCC_ATOMIC_LLONG_LOCK_FREE == 2
    __atomic_store_n(v, now, __ATOMIC_RELEASE);
#else
    *v = now;
#endif
}

/* >>frame ==== L2 ==== the four-byte length in front of every tarpc document */

/* Reads headers; the payload's bytes are the caller's, who counts `left` to zero and resets. */
typedef struct opc__frame {
    uint8_t head[4];
    uint32_t have; /* header bytes so far, 0 to 4 */
    uint32_t left; /* payload bytes still to come, while open */
    int open;
} opc__frame;

OPC__FN void opc__frame_reset(opc__frame *f) { memset(f, 0, sizeof *f); }

/* Consumes header bytes. Once the header is complete `open` is set and `left` is the length; a
   length of 0 or above max is OPCOMMS_E_PROTOCOL at the fourth byte, before any payload. */
OPC__FN opcomms_err opc__frame_head(opc__frame *f, uint32_t max, const uint8_t *p, size_t n,
                                    size_t *used) {
    size_t i = 0;
    uint32_t len;
    OPCOMMS_ASSERT(f->have <= 4);
    OPCOMMS_ASSERT(max > 0);
    if (!f->open) {
        while (f->have < 4 && i < n) f->head[f->have++] = p[i++];
        if (f->have == 4) {
            len = opc__buf_be32(f->head);
            if (len == 0 || len > max) return OPCOMMS_E_PROTOCOL;
            f->left = len;
            f->open = 1;
        }
    }
    *used = i;
    return OPCOMMS_OK;
}

/* >>json ==== L2 ==== tokenizer of RFC 8259 that stops and resumes at any byte, in fixed memory */

#define OPC__JSON_DEPTH 512u /* containers open at once; one more is an error */

enum {
    OPC__JSON_MORE, /* the input is used up */
    OPC__JSON_OBJECT,
    OPC__JSON_OBJECT_END,
    OPC__JSON_ARRAY,
    OPC__JSON_ARRAY_END,
    OPC__JSON_TEXT,     /* a string begins; `key` tells what for */
    OPC__JSON_PIECE,    /* decoded bytes of it, may end within a character */
    OPC__JSON_TEXT_END, /* the string was complete and valid UTF-8 */
    OPC__JSON_NUMBER,
    OPC__JSON_TRUE,
    OPC__JSON_FALSE,
    OPC__JSON_NULL
};

typedef struct opc__json_token {
    int kind;
    int key;          /* of TEXT, PIECE, TEXT_END */
    int is_u64;       /* of NUMBER: digits only, at most 2^64-1 (so not -0, 1.0, 1e3) */
    uint64_t u64;     /* of NUMBER, when is_u64 */
    const uint8_t *p; /* of PIECE: into the input or the tokenizer; valid until the next step */
    size_t n;
} opc__json_token;

enum { /* what the grammar allows next */
    OPC__JSON_WANT_VALUE,
    OPC__JSON_WANT_FIRST, /* value or ] */
    OPC__JSON_WANT_FIRST_KEY, /* key or } */
    OPC__JSON_WANT_KEY,
    OPC__JSON_WANT_COLON,
    OPC__JSON_WANT_COMMA, /* comma or the container's end */
    OPC__JSON_WANT_NOTHING
};

enum { /* within which token */
    OPC__JSON_LEX_NONE,
    OPC__JSON_LEX_PLAIN,
    OPC__JSON_LEX_ESCAPE,
    OPC__JSON_LEX_HEX,
    OPC__JSON_LEX_LOW,  /* after a high surrogate: the backslash */
    OPC__JSON_LEX_LOW_U, /* and the u of the low one */
    OPC__JSON_LEX_LITERAL,
    OPC__JSON_LEX_MINUS, /* numbers from here on, by what was read last */
    OPC__JSON_LEX_ZERO,
    OPC__JSON_LEX_INT,
    OPC__JSON_LEX_DOT,
    OPC__JSON_LEX_FRACTION,
    OPC__JSON_LEX_E,
    OPC__JSON_LEX_SIGN,
    OPC__JSON_LEX_EXPONENT
};

typedef struct opc__json {
    uint64_t number;
    uint32_t hex;   /* digits of an escape so far */
    uint32_t high;  /* high surrogate that waits for its low one, or 0 */
    uint16_t depth; /* bits used in `stack`; bit set: object */
    uint8_t want;
    uint8_t lex;
    uint8_t key;
    uint8_t hex_count;
    uint8_t utf8_more; /* continuation bytes due, the next one in utf8_low..utf8_high */
    uint8_t utf8_low;
    uint8_t utf8_high;
    uint8_t literal; /* OPC__JSON_TRUE, _FALSE or _NULL */
    uint8_t literal_at;
    uint8_t number_is_u64;
    uint8_t piece[4];
    uint8_t stack[OPC__JSON_DEPTH / 8u];
} opc__json;

OPC__FN void opc__json_init(opc__json *j) {
    memset(j, 0, sizeof *j);
    j->want = OPC__JSON_WANT_VALUE;
    j->lex = OPC__JSON_LEX_NONE;
}

/* Whether exactly one document was read. (A number alone never is: its end is not known.) */
OPC__FN int opc__json_done(const opc__json *j) {
    return j->want == OPC__JSON_WANT_NOTHING && j->lex == OPC__JSON_LEX_NONE;
}

OPC__FN void opc__json_after_value(opc__json *j) {
    j->lex = OPC__JSON_LEX_NONE;
    j->want = j->depth == 0 ? OPC__JSON_WANT_NOTHING : OPC__JSON_WANT_COMMA;
}

OPC__FN int opc__json_in_object(const opc__json *j) {
    unsigned top = j->depth;
    OPCOMMS_ASSERT(top > 0);
    OPCOMMS_ASSERT(top <= OPC__JSON_DEPTH);
    top--;
    return (j->stack[top / 8u] >> (top % 8u)) & 1u;
}

OPC__FN opcomms_err opc__json_open(opc__json *j, int object, opc__json_token *t) {
    unsigned at = j->depth;
    unsigned bit;
    if (at >= OPC__JSON_DEPTH) return OPCOMMS_E_PROTOCOL;
    bit = 1u << (at % 8u);
    if (object) {
        j->stack[at / 8u] = (uint8_t)(j->stack[at / 8u] | bit);
    } else {
        j->stack[at / 8u] = (uint8_t)(j->stack[at / 8u] & ~bit);
    }
    j->depth++;
    j->want = object ? OPC__JSON_WANT_FIRST_KEY : OPC__JSON_WANT_FIRST;
    t->kind = object ? OPC__JSON_OBJECT : OPC__JSON_ARRAY;
    return OPCOMMS_OK;
}

OPC__FN void opc__json_close(opc__json *j, opc__json_token *t) {
    t->kind = opc__json_in_object(j) ? OPC__JSON_OBJECT_END : OPC__JSON_ARRAY_END;
    j->depth--;
    opc__json_after_value(j);
}

/* Starts a string; also the first of a key. */
OPC__FN void opc__json_open_text(opc__json *j, int key, opc__json_token *t) {
    OPCOMMS_ASSERT(j->lex == OPC__JSON_LEX_NONE);
    j->lex = OPC__JSON_LEX_PLAIN;
    j->key = key ? 1 : 0;
    j->high = 0;
    j->utf8_more = 0;
    t->kind = OPC__JSON_TEXT;
    t->key = j->key;
}

/* The first byte of a value. Scalars other than strings give their token only at their end. */
OPC__FN opcomms_err opc__json_open_value(opc__json *j, unsigned c, opc__json_token *t) {
    if (c == '"') {
        opc__json_open_text(j, 0, t);
        return OPCOMMS_OK;
    }
    if (c == '{' || c == '[') return opc__json_open(j, c == '{', t);
    if (c == 't' || c == 'f' || c == 'n') {
        j->lex = OPC__JSON_LEX_LITERAL;
        j->literal = c == 't' ? OPC__JSON_TRUE : c == 'f' ? OPC__JSON_FALSE : OPC__JSON_NULL;
        j->literal_at = 1;
        return OPCOMMS_OK;
    }
    if (c == '-' || (c >= '0' && c <= '9')) {
        j->lex = c == '-' ? OPC__JSON_LEX_MINUS
                          : c == '0' ? OPC__JSON_LEX_ZERO : OPC__JSON_LEX_INT;
        j->number = c == '-' ? 0u : (uint64_t)(c - '0');
        j->number_is_u64 = c != '-';
        return OPCOMMS_OK;
    }
    return OPCOMMS_E_PROTOCOL;
}

/* A byte between tokens that is not white space. */
OPC__FN opcomms_err opc__json_structure(opc__json *j, unsigned c, opc__json_token *t) {
    switch (j->want) {
    case OPC__JSON_WANT_FIRST:
        if (c == ']') {
            opc__json_close(j, t);
            return OPCOMMS_OK;
        }
        return opc__json_open_value(j, c, t);
    case OPC__JSON_WANT_VALUE: return opc__json_open_value(j, c, t);
    case OPC__JSON_WANT_FIRST_KEY:
    case OPC__JSON_WANT_KEY:
        if (c == '}' && j->want == OPC__JSON_WANT_FIRST_KEY) {
            opc__json_close(j, t);
            return OPCOMMS_OK;
        }
        if (c != '"') return OPCOMMS_E_PROTOCOL;
        opc__json_open_text(j, 1, t);
        return OPCOMMS_OK;
    case OPC__JSON_WANT_COLON:
        if (c != ':') return OPCOMMS_E_PROTOCOL;
        j->want = OPC__JSON_WANT_VALUE;
        return OPCOMMS_OK;
    case OPC__JSON_WANT_COMMA:
        if (c == ',') {
            j->want = opc__json_in_object(j) ? OPC__JSON_WANT_KEY : OPC__JSON_WANT_VALUE;
            return OPCOMMS_OK;
        }
        if (c != (opc__json_in_object(j) ? '}' : ']')) return OPCOMMS_E_PROTOCOL;
        opc__json_close(j, t);
        return OPCOMMS_OK;
    default: return OPCOMMS_E_PROTOCOL; /* something behind the document */
    }
}

/* RFC 3629 4: sets what may follow the first byte of a multi-byte character. */
OPC__FN int opc__json_utf8_first(opc__json *j, unsigned c) {
    j->utf8_low = 0x80;
    j->utf8_high = 0xbf;
    if (c >= 0xc2 && c <= 0xdf) {
        j->utf8_more = 1;
    } else if (c >= 0xe0 && c <= 0xef) {
        j->utf8_more = 2;
        if (c == 0xe0) j->utf8_low = 0xa0;
        if (c == 0xed) j->utf8_high = 0x9f;
    } else if (c >= 0xf0 && c <= 0xf4) {
        j->utf8_more = 3;
        if (c == 0xf0) j->utf8_low = 0x90;
        if (c == 0xf4) j->utf8_high = 0x8f;
    } else {
        return 0;
    }
    return 1;
}

/* The stretch of a string up to a quote, a backslash or the end of the input. */
OPC__FN opcomms_err opc__json_plain(opc__json *j, const uint8_t **at, const uint8_t *end,
                                    opc__json_token *t) {
    const uint8_t *p = *at;
    OPCOMMS_ASSERT(p < end);
    while (p < end) {
        unsigned c = *p;
        if (j->utf8_more > 0) {
            if (c < j->utf8_low || c > j->utf8_high) return OPCOMMS_E_PROTOCOL;
            j->utf8_low = 0x80;
            j->utf8_high = 0xbf;
            j->utf8_more--;
        } else if (c >= 0x80) {
            if (!opc__json_utf8_first(j, c)) return OPCOMMS_E_PROTOCOL;
        } else if (c == '"' || c == '\\' || c < 0x20) {
            break;
        }
        p++;
    }
    if (p > *at) {
        t->kind = OPC__JSON_PIECE;
        t->key = j->key;
        t->p = *at;
        t->n = (size_t)(p - *at);
        *at = p;
        return OPCOMMS_OK;
    }
    if (*p < 0x20) return OPCOMMS_E_PROTOCOL;
    *at = p + 1;
    if (*p == '\\') {
        j->lex = OPC__JSON_LEX_ESCAPE;
        return OPCOMMS_OK;
    }
    t->kind = OPC__JSON_TEXT_END;
    t->key = j->key;
    opc__json_after_value(j);
    if (j->key) j->want = OPC__JSON_WANT_COLON;
    return OPCOMMS_OK;
}

/* A decoded character as UTF-8. */
OPC__FN void opc__json_put(opc__json *j, uint32_t c, opc__json_token *t) {
    size_t n = 0;
    OPCOMMS_ASSERT(c <= 0x10ffffu);
    OPCOMMS_ASSERT(c < 0xd800u || c > 0xdfffu);
    if (c < 0x80u) {
        j->piece[n++] = (uint8_t)c;
    } else {
        if (c < 0x800u) {
            j->piece[n++] = (uint8_t)(0xc0u | (c >> 6));
        } else {
            if (c < 0x10000u) {
                j->piece[n++] = (uint8_t)(0xe0u | (c >> 12));
            } else {
                j->piece[n++] = (uint8_t)(0xf0u | (c >> 18));
                j->piece[n++] = (uint8_t)(0x80u | ((c >> 12) & 0x3fu));
            }
            j->piece[n++] = (uint8_t)(0x80u | ((c >> 6) & 0x3fu));
        }
        j->piece[n++] = (uint8_t)(0x80u | (c & 0x3fu));
    }
    j->lex = OPC__JSON_LEX_PLAIN;
    j->high = 0;
    t->kind = OPC__JSON_PIECE;
    t->key = j->key;
    t->p = j->piece;
    t->n = n;
}

/* The four digits of \uXXXX are complete; RFC 8259 7: a surrogate counts only as half of a pair. */
OPC__FN opcomms_err opc__json_unit(opc__json *j, opc__json_token *t) {
    uint32_t unit = j->hex;
    int low = unit >= 0xdc00u && unit <= 0xdfffu;
    if (j->high != 0) {
        if (!low) return OPCOMMS_E_PROTOCOL;
        opc__json_put(j, 0x10000u + ((j->high - 0xd800u) << 10) + (unit - 0xdc00u), t);
        return OPCOMMS_OK;
    }
    if (low) return OPCOMMS_E_PROTOCOL;
    if (unit >= 0xd800u && unit <= 0xdbffu) {
        j->high = unit;
        j->lex = OPC__JSON_LEX_LOW;
        return OPCOMMS_OK;
    }
    opc__json_put(j, unit, t);
    return OPCOMMS_OK;
}

/* A byte of an escape. */
OPC__FN opcomms_err opc__json_escape(opc__json *j, unsigned c, opc__json_token *t) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    size_t i;
    int digit;
    switch (j->lex) {
    case OPC__JSON_LEX_LOW:
        j->lex = OPC__JSON_LEX_LOW_U;
        return c == '\\' ? OPCOMMS_OK : OPCOMMS_E_PROTOCOL;
    case OPC__JSON_LEX_HEX:
        digit = opc__str_hex_value((int)c);
        if (digit < 0) return OPCOMMS_E_PROTOCOL;
        j->hex = (j->hex << 4) | (uint32_t)digit;
        if (++j->hex_count < 4) return OPCOMMS_OK;
        return opc__json_unit(j, t);
    default: break;
    }
    if (c == 'u') {
        j->hex = 0;
        j->hex_count = 0;
        j->lex = OPC__JSON_LEX_HEX;
        return OPCOMMS_OK;
    }
    if (j->lex == OPC__JSON_LEX_LOW_U) return OPCOMMS_E_PROTOCOL;
    for (i = 0; i < sizeof from - 1; i++) {
        if (c == (unsigned char)from[i]) {
            opc__json_put(j, (uint32_t)(unsigned char)to[i], t);
            return OPCOMMS_OK;
        }
    }
    return OPCOMMS_E_PROTOCOL;
}

OPC__FN opcomms_err opc__json_literal(opc__json *j, unsigned c, opc__json_token *t) {
    const char *word = j->literal == OPC__JSON_TRUE ? "true"
                       : j->literal == OPC__JSON_FALSE ? "false" : "null";
    OPCOMMS_ASSERT(j->literal_at < strlen(word));
    if (c != (unsigned char)word[j->literal_at]) return OPCOMMS_E_PROTOCOL;
    if (word[++j->literal_at] != 0) return OPCOMMS_OK;
    t->kind = j->literal;
    opc__json_after_value(j);
    return OPCOMMS_OK;
}

OPC__FN void opc__json_digit(opc__json *j, unsigned digit) {
    if (j->number > (UINT64_MAX - digit) / 10u) j->number_is_u64 = 0;
    j->number = j->number * 10u + digit; /* may wrap; then it is not used */
}

/* A byte that may belong to a number; *taken is 0 when it ends it, and the token is given. */
OPC__FN opcomms_err opc__json_number(opc__json *j, unsigned c, int *taken, opc__json_token *t) {
    int digit = c >= '0' && c <= '9';
    int lex = j->lex;
    *taken = 1;
    if (lex == OPC__JSON_LEX_INT && digit) {
        opc__json_digit(j, c - '0');
    } else if (lex == OPC__JSON_LEX_MINUS && digit) {
        j->lex = c == '0' ? OPC__JSON_LEX_ZERO : OPC__JSON_LEX_INT;
    } else if (lex == OPC__JSON_LEX_ZERO && digit) {
        return OPCOMMS_E_PROTOCOL;
    } else if ((lex == OPC__JSON_LEX_DOT || lex == OPC__JSON_LEX_FRACTION) && digit) {
        j->lex = OPC__JSON_LEX_FRACTION;
    } else if (lex >= OPC__JSON_LEX_E && digit) {
        j->lex = OPC__JSON_LEX_EXPONENT;
    } else if (lex == OPC__JSON_LEX_E && (c == '+' || c == '-')) {
        j->lex = OPC__JSON_LEX_SIGN;
    } else if (lex == OPC__JSON_LEX_MINUS || lex == OPC__JSON_LEX_DOT ||
               lex == OPC__JSON_LEX_E || lex == OPC__JSON_LEX_SIGN) {
        return OPCOMMS_E_PROTOCOL; /* a digit is missing */
    } else if (c == '.' && lex <= OPC__JSON_LEX_INT) {
        j->lex = OPC__JSON_LEX_DOT;
        j->number_is_u64 = 0;
    } else if ((c == 'e' || c == 'E') && lex <= OPC__JSON_LEX_FRACTION) {
        j->lex = OPC__JSON_LEX_E;
        j->number_is_u64 = 0;
    } else {
        *taken = 0;
        t->kind = OPC__JSON_NUMBER;
        t->is_u64 = j->number_is_u64;
        t->u64 = j->number_is_u64 ? j->number : 0;
        opc__json_after_value(j);
    }
    return OPCOMMS_OK;
}

/* The next token of *at..end, moving *at; OPC__JSON_MORE once the input is used up. The only error
   is OPCOMMS_E_PROTOCOL, after which the tokenizer must not be used. Strings are checked strictly
   even where their content is of no interest, keys included. */
OPC__FN opcomms_err opc__json_step(opc__json *j, const uint8_t **at, const uint8_t *end,
                                   opc__json_token *t) {
    opcomms_err rc = OPCOMMS_OK;
    memset(t, 0, sizeof *t);
    OPCOMMS_ASSERT(*at <= end);
    while (rc == OPCOMMS_OK && t->kind == OPC__JSON_MORE && *at < end) {
        unsigned c = **at;
        int taken = 1;
        if (j->lex == OPC__JSON_LEX_PLAIN) {
            rc = opc__json_plain(j, at, end, t);
            continue;
        }
        if (j->lex >= OPC__JSON_LEX_MINUS) {
            rc = opc__json_number(j, c, &taken, t);
        } else if (j->lex == OPC__JSON_LEX_LITERAL) {
            rc = opc__json_literal(j, c, t);
        } else if (j->lex != OPC__JSON_LEX_NONE) {
            rc = opc__json_escape(j, c, t);
        } else if (c != ' ' && c != '\n' && c != '\r' && c != '\t') {
            rc = opc__json_structure(j, c, t);
        }
        if (taken) (*at)++;
    }
    return rc;
}

/* >>bytes ==== L2 ==== recognises the canonical text of a byte array and turns it into bytes */

enum { OPC__BYTES_START, OPC__BYTES_OPEN, OPC__BYTES_NUMBER, OPC__BYTES_COMMA, OPC__BYTES_END };

typedef struct opc__bytes_in {
    uint8_t state;
    uint8_t digits; /* of the number under way */
    uint8_t any;    /* a byte has been delivered */
    uint32_t value;
    int broken;
} opc__bytes_in;

OPC__FN void opc__bytes_in_init(opc__bytes_in *b) { memset(b, 0, sizeof *b); }

/* Takes one character, or says that it cannot belong. A number is delivered when the comma or
   bracket behind it is taken. */
OPC__FN int opc__bytes_in_char(opc__bytes_in *b, unsigned c, uint8_t *out, size_t *made) {
    unsigned digit = c - '0';
    switch (b->state) {
    case OPC__BYTES_START:
        if (c != '[') return 0;
        b->state = OPC__BYTES_OPEN;
        return 1;
    case OPC__BYTES_OPEN:
    case OPC__BYTES_COMMA:
        if (c == ']' && b->state == OPC__BYTES_OPEN) {
            b->state = OPC__BYTES_END;
            return 1;
        }
        if (c < '0' || c > '9') return 0;
        b->state = OPC__BYTES_NUMBER;
        b->value = digit;
        b->digits = 1;
        return 1;
    case OPC__BYTES_NUMBER:
        if (c == ',' || c == ']') {
            out[(*made)++] = (uint8_t)b->value;
            b->any = 1;
            b->state = c == ',' ? OPC__BYTES_COMMA : OPC__BYTES_END;
            return 1;
        }
        if (c < '0' || c > '9') return 0;
        if (b->value == 0 || b->value * 10u + digit > 255u) return 0;
        b->value = b->value * 10u + digit;
        b->digits++;
        return 1;
    default: return 0;
    }
}

/* Recognises the CANONICAL text of a byte array, which is what the reference emits: [65,122,195] or
   [], no white space, no leading zeros, every number 0 to 255. Feeds n characters, writes the
   decoded bytes (never more than n) to out and their count to *out_len; returns the characters
   consumed. It stops early, and sets `broken` for good, at the first character that cannot belong
   to such a text; that character is not consumed.

   Rebuilding the original text, at any moment, broken or not: with D the bytes delivered so far and
   P what opc__bytes_in_pending gives, the characters consumed are
       P                                       when D is empty,
       '[' D0 ',' D1 ... ',' Dlast  then  P    otherwise,
   that is opc__render_feed(OPC__RENDER_BYTES) of D without opc__render_finish, then P. What follows
   in the original are the characters that were not consumed. */
OPC__FN size_t opc__bytes_in_feed(opc__bytes_in *b, const uint8_t *text, size_t n, uint8_t *out,
                                  size_t *out_len) {
    size_t i = 0, made = 0;
    OPCOMMS_ASSERT(b->state <= OPC__BYTES_END);
    while (i < n && !b->broken) {
        if (opc__bytes_in_char(b, text[i], out, &made)) {
            i++;
        } else {
            b->broken = 1;
        }
    }
    OPCOMMS_ASSERT(made <= i);
    *out_len = made;
    return i;
}

/* The text so far is exactly one complete canonical array. */
OPC__FN int opc__bytes_in_done(const opc__bytes_in *b) {
    return b->state == OPC__BYTES_END && !b->broken;
}

/* The characters consumed that the delivered bytes do not stand for: "", "[", "[]", "]", ",", or
   "[" or "," with one to three digits. At most four. */
OPC__FN size_t opc__bytes_in_pending(const opc__bytes_in *b, uint8_t out[8]) {
    size_t n = 0;
    uint32_t unit = 100;
    unsigned i;
    if (b->state == OPC__BYTES_START) return 0;
    if (!b->any) {
        out[n++] = '[';
    } else if (b->state != OPC__BYTES_END) {
        out[n++] = ',';
    }
    if (b->state == OPC__BYTES_END) out[n++] = ']';
    if (b->state == OPC__BYTES_NUMBER) {
        OPCOMMS_ASSERT(b->digits >= 1);
        OPCOMMS_ASSERT(b->digits <= 3);
        for (i = 3; i > 0; i--) {
            if (i <= b->digits) out[n++] = (uint8_t)('0' + (int)(b->value / unit % 10u));
            unit /= 10u;
        }
    }
    OPCOMMS_ASSERT(n <= 4);
    return n;
}

/* >>render ==== L2 ==== message bytes as the text of a JSON string: array of numbers, or escaped */

enum { OPC__RENDER_BYTES, OPC__RENDER_TEXT };

typedef struct opc__render {
    uint8_t mode;
    uint8_t any;     /* a byte has been taken */
    uint8_t held_at; /* characters of held[] already written */
    uint8_t held_len;
    uint8_t held[6]; /* characters of a byte taken that had no room yet */
} opc__render;

OPC__FN void opc__render_init(opc__render *r, int mode) {
    OPCOMMS_ASSERT(mode == OPC__RENDER_BYTES || mode == OPC__RENDER_TEXT);
    memset(r, 0, sizeof *r);
    r->mode = (uint8_t)mode;
}

/* The letter of a two-character escape, 'u' for \u00xx, 0 for a byte that stands for itself. */
OPC__FN unsigned opc__render_escape(unsigned c) {
    if (c >= 0x20) return c == '"' || c == '\\' ? c : 0u;
    switch (c) {
    case '\b': return 'b';
    case '\f': return 'f';
    case '\n': return 'n';
    case '\r': return 'r';
    case '\t': return 't';
    default: return 'u';
    }
}

/* What n bytes add to the length of the text: their digits, or their escaped characters. Sums over
   pieces add up; opc__render_total makes the length of the whole from the sum. */
OPC__FN uint64_t opc__render_size(int mode, const uint8_t *p, size_t n) {
    uint64_t sum = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        unsigned c = p[i];
        if (mode == OPC__RENDER_BYTES) {
            sum += 1u + (c >= 10u) + (c >= 100u);
        } else {
            unsigned letter = opc__render_escape(c);
            sum += letter == 0 ? 1u : letter == 'u' ? 6u : 2u;
        }
    }
    return sum;
}

/* The length of the whole text of `count` bytes whose sizes add up to `sum`: an array has its two
   brackets and a comma between every two numbers besides. */
OPC__FN uint64_t opc__render_total(int mode, uint64_t sum, uint64_t count) {
    if (mode == OPC__RENDER_TEXT) return sum;
    return sum + 2u + (count > 0 ? count - 1u : 0u);
}

/* The characters of one byte, with what comes before it; 1 to 6 of them. */
OPC__FN size_t opc__render_byte(opc__render *r, unsigned c, uint8_t *out) {
    static const char hex[] = "0123456789abcdef";
    size_t n = 0;
    unsigned letter;
    if (r->mode == OPC__RENDER_BYTES) {
        out[n++] = r->any ? ',' : '[';
        r->any = 1;
        if (c >= 100u) out[n++] = (uint8_t)('0' + c / 100u);
        if (c >= 10u) out[n++] = (uint8_t)('0' + c / 10u % 10u);
        out[n++] = (uint8_t)('0' + c % 10u);
        return n;
    }
    letter = opc__render_escape(c);
    if (letter == 0) {
        out[n++] = (uint8_t)c;
        return n;
    }
    out[n++] = '\\';
    out[n++] = (uint8_t)letter;
    if (letter == 'u') {
        out[n++] = '0';
        out[n++] = '0';
        out[n++] = (uint8_t)hex[c >> 4];
        out[n++] = (uint8_t)hex[c & 15u];
    }
    return n;
}

OPC__FN size_t opc__render_flush(opc__render *r, uint8_t *dst, size_t cap) {
    size_t n = (size_t)(r->held_len - r->held_at);
    OPCOMMS_ASSERT(r->held_at <= r->held_len);
    if (n > cap) n = cap;
    if (n > 0) memcpy(dst, r->held + r->held_at, n);
    r->held_at = (uint8_t)(r->held_at + n);
    return n;
}

/* Renders src into dst, as far as either goes: *used bytes taken, *put characters written. Resumes
   at any point, also with room for a single character. Nothing is held back while six characters
   of room are left. */
OPC__FN void opc__render_feed(opc__render *r, const uint8_t *src, size_t n, size_t *used,
                              uint8_t *dst, size_t cap, size_t *put) {
    size_t i = 0, out = opc__render_flush(r, dst, cap);
    while (i < n && cap - out >= sizeof r->held) out += opc__render_byte(r, src[i++], dst + out);
    while (i < n && out < cap) {
        r->held_len = (uint8_t)opc__render_byte(r, src[i++], r->held);
        r->held_at = 0;
        out += opc__render_flush(r, dst + out, cap - out);
    }
    OPCOMMS_ASSERT(i <= n);
    OPCOMMS_ASSERT(out <= cap);
    *used = i;
    *put = out;
}

/* Writes what is held back and the closing bracket; 1 when the text is complete, 0 to be called
   again with more room. Calling it after it answered 1 writes nothing and answers 1. */
OPC__FN int opc__render_finish(opc__render *r, uint8_t *dst, size_t cap, size_t *put) {
    size_t out = opc__render_flush(r, dst, cap);
    *put = out;
    if (r->held_at < r->held_len) return 0;
    if (r->mode == OPC__RENDER_BYTES && r->any != 2) {
        r->held_len = 0;
        r->held_at = 0;
        if (!r->any) r->held[r->held_len++] = '[';
        r->held[r->held_len++] = ']';
        r->any = 2;
        *put = out + opc__render_flush(r, dst + out, cap - out);
    }
    return r->held_at == r->held_len;
}

/* >>fetch ==== L2 ==== a message's text into a caller's buffer, as the bytes it stands for */

/* A message being fetched into a caller's buffer: as bytes while its text is a canonical array, as
   the text itself from where it turns out not to be one. What does not fit is only counted. */
typedef struct opc__fetch {
    uint8_t *buf;
    size_t cap;
    uint64_t bytes; /* in the form it has now */
    uint64_t chars; /* of the text so far */
    int is_text;
    opc__bytes_in array;
} opc__fetch;

OPC__FN void opc__fetch_init(opc__fetch *f, uint8_t *buf, size_t cap) {
    memset(f, 0, sizeof *f);
    f->buf = buf;
    f->cap = cap;
    opc__bytes_in_init(&f->array);
}

OPC__FN void opc__fetch_append(opc__fetch *f, const uint8_t *p, size_t n) {
    if (f->bytes < f->cap && n > 0) {
        size_t room = f->cap - (size_t)f->bytes;
        memcpy(f->buf + f->bytes, p, n < room ? n : room);
    }
    f->bytes += n;
}

/* From here on it is text: the bytes so far become the characters they came as, in place and from
   the end, because characters are more than bytes. `chars` is the text that they came from. */
OPC__FN void opc__fetch_to_text(opc__fetch *f) {
    uint8_t pending[8];
    size_t held = opc__bytes_in_pending(&f->array, pending), at, i;
    f->is_text = 1;
    if (f->chars <= f->cap) { /* else it only has to be counted */
        at = (size_t)f->chars - held;
        if (held > 0) memcpy(f->buf + at, pending, held);
        for (i = (size_t)f->bytes; i > 0; i--) {
            unsigned v = f->buf[i - 1];
            do {
                f->buf[--at] = (uint8_t)('0' + v % 10u);
                v /= 10u;
            } while (v != 0);
            f->buf[--at] = i == 1 ? '[' : ',';
        }
        OPCOMMS_ASSERT(at == 0);
    }
    f->bytes = f->chars;
}

OPC__FN void opc__fetch_take(opc__fetch *f, const uint8_t *p, size_t n) {
    while (n > 0 && !f->is_text) {
        uint8_t out[256];
        size_t made = 0, some = n < sizeof out ? n : sizeof out;
        size_t used = opc__bytes_in_feed(&f->array, p, some, out, &made);
        opc__fetch_append(f, out, made);
        f->chars += used;
        if (f->array.broken) opc__fetch_to_text(f);
        p += used;
        n -= used;
    }
    if (n == 0) return;
    opc__fetch_append(f, p, n);
    f->chars += n;
}

/* The text has ended. */
OPC__FN void opc__fetch_end(opc__fetch *f) {
    if (!f->is_text && !opc__bytes_in_done(&f->array)) opc__fetch_to_text(f);
}

/* >>shape ==== L2 ==== what serde accepts for a type, as tables; documents walked by them */

/* The rules of serde_json for derived types: a struct is an object in any order, unknown keys
   ignored and known ones at most once, or an array of all its fields in order; an enum is an object
   with exactly one key, or a bare string where the variant holds nothing. */
enum {
    OPC__SHAPE_IS_IGNORED,
    OPC__SHAPE_IS_NUMBER,
    OPC__SHAPE_IS_BOOL,
    OPC__SHAPE_IS_TEXT,
    OPC__SHAPE_IS_UNIT,
    OPC__SHAPE_IS_STRUCT,
    OPC__SHAPE_IS_ENUM,
    OPC__SHAPE_IS_TUPLE
};

#define OPC__SHAPE_OR_BOOL 1u   /* a bare bool is taken, into `other` */
#define OPC__SHAPE_OR_NUMBER 2u /* a bare number is taken as the first element */
#define OPC__SHAPE_OR_NULL 4u   /* null is taken: nothing is set */
#define OPC__SHAPE_STRICT 8u    /* an unknown key is an error */

enum {
    OPC__SHAPE_IGNORED,
    OPC__SHAPE_U8,
    OPC__SHAPE_U32,
    OPC__SHAPE_U64,
    OPC__SHAPE_BOOL,
    OPC__SHAPE_TEXT,
    OPC__SHAPE_UNIT,
    OPC__SHAPE_CLIENT,
    OPC__SHAPE_REQUEST,
    OPC__SHAPE_CONTEXT,
    OPC__SHAPE_DURATION,
    OPC__SHAPE_TRACE,
    OPC__SHAPE_TRACE_ID,
    OPC__SHAPE_SAMPLING,
    OPC__SHAPE_CANCEL,
    OPC__SHAPE_CALL,
    OPC__SHAPE_SEND,
    OPC__SHAPE_GET,
    OPC__SHAPE_ACK,
    OPC__SHAPE_PING,
    OPC__SHAPE_IDENT,
    OPC__SHAPE_RESPONSE,
    OPC__SHAPE_RESULT,
    OPC__SHAPE_SERVER_ERROR,
    OPC__SHAPE_ANSWER,
    OPC__SHAPE_OUTCOME,
    OPC__SHAPE_FETCHED,
    OPC__SHAPE_MESSAGE,
    OPC__SHAPE_PONG,
    OPC__SHAPE_RPC_ERROR,
    OPC__SHAPE_TOO_LARGE,
    OPC__SHAPE_COUNT
};

/* Where a value goes. An enum leaves the index of its variant, a text its length. */
enum {
    OPC__SLOT_NONE,
    OPC__SLOT_TOP,
    OPC__SLOT_ID,
    OPC__SLOT_SECS,
    OPC__SLOT_NANOS,
    OPC__SLOT_CALL,
    OPC__SLOT_FROM_ID,
    OPC__SLOT_IDENT_ID,
    OPC__SLOT_HASH,
    OPC__SLOT_UID,
    OPC__SLOT_MSG,
    OPC__SLOT_OUTCOME,
    OPC__SLOT_FLAG,
    OPC__SLOT_ERROR,
    OPC__SLOT_LIMIT, /* and GOT behind it: the elements of one tuple */
    OPC__SLOT_GOT,
    OPC__SLOT_KIND,
    OPC__SLOT_DETAIL,
    OPC__SLOT_COUNT
};

typedef struct opc__shape_field {
    const char *name;
    uint8_t shape;
    uint8_t slot;
    uint8_t optional;
} opc__shape_field;

typedef struct opc__shape {
    uint8_t kind;
    uint8_t flags;
    uint8_t count; /* of fields, variants or elements; at most 16 */
    uint8_t other; /* slot for OR_BOOL; shape of a tuple's elements */
    uint64_t max;  /* of a number */
    const opc__shape_field *field;
} opc__shape;

static const opc__shape_field opc__shape_client[] = {
    {"Request", OPC__SHAPE_REQUEST, OPC__SLOT_NONE, 0},
    {"Cancel", OPC__SHAPE_CANCEL, OPC__SLOT_NONE, 0}};
static const opc__shape_field opc__shape_request[] = {
    {"context", OPC__SHAPE_CONTEXT, OPC__SLOT_NONE, 0},
    {"id", OPC__SHAPE_U64, OPC__SLOT_ID, 0},
    {"message", OPC__SHAPE_CALL, OPC__SLOT_CALL, 0}};
static const opc__shape_field opc__shape_context[] = {
    {"deadline", OPC__SHAPE_DURATION, OPC__SLOT_NONE, 1},
    {"trace_context", OPC__SHAPE_TRACE, OPC__SLOT_NONE, 0}};
static const opc__shape_field opc__shape_duration[] = {
    {"secs", OPC__SHAPE_U64, OPC__SLOT_SECS, 0}, {"nanos", OPC__SHAPE_U32, OPC__SLOT_NANOS, 0}};
static const opc__shape_field opc__shape_trace[] = {
    {"trace_id", OPC__SHAPE_TRACE_ID, OPC__SLOT_NONE, 0},
    {"span_id", OPC__SHAPE_U64, OPC__SLOT_NONE, 0},
    {"sampling_decision", OPC__SHAPE_SAMPLING, OPC__SLOT_NONE, 0}};
static const opc__shape_field opc__shape_sampling[] = {
    {"Sampled", OPC__SHAPE_UNIT, OPC__SLOT_NONE, 0},
    {"Unsampled", OPC__SHAPE_UNIT, OPC__SLOT_NONE, 0}};
static const opc__shape_field opc__shape_cancel[] = {
    {"trace_context", OPC__SHAPE_TRACE, OPC__SLOT_NONE, 1},
    {"request_id", OPC__SHAPE_U64, OPC__SLOT_ID, 0}};
static const opc__shape_field opc__shape_call[] = { /* order: OPC__REQ_SEND.. */
    {"Send", OPC__SHAPE_SEND, OPC__SLOT_NONE, 0}, {"Get", OPC__SHAPE_GET, OPC__SLOT_NONE, 0},
    {"Ack", OPC__SHAPE_ACK, OPC__SLOT_NONE, 0}, {"Ping", OPC__SHAPE_PING, OPC__SLOT_NONE, 0}};
static const opc__shape_field opc__shape_send[] = {
    {"from_id", OPC__SHAPE_U8, OPC__SLOT_FROM_ID, 0},
    {"dest", OPC__SHAPE_IDENT, OPC__SLOT_NONE, 0},
    {"msg", OPC__SHAPE_TEXT, OPC__SLOT_MSG, 0}};
static const opc__shape_field opc__shape_get_ack[] = { /* Get has the first of them only */
    {"dest_id", OPC__SHAPE_U8, OPC__SLOT_IDENT_ID, 0},
    {"uid", OPC__SHAPE_U64, OPC__SLOT_UID, 0}};
static const opc__shape_field opc__shape_ident[] = {
    {"pubkey_hash", OPC__SHAPE_TEXT, OPC__SLOT_HASH, 0},
    {"id", OPC__SHAPE_U8, OPC__SLOT_IDENT_ID, 0}};
static const opc__shape_field opc__shape_response[] = {
    {"request_id", OPC__SHAPE_U64, OPC__SLOT_ID, 0},
    {"message", OPC__SHAPE_RESULT, OPC__SLOT_TOP, 0}};
static const opc__shape_field opc__shape_result[] = {
    {"Ok", OPC__SHAPE_ANSWER, OPC__SLOT_CALL, 0},
    {"Err", OPC__SHAPE_SERVER_ERROR, OPC__SLOT_NONE, 0}};
static const opc__shape_field opc__shape_server_error[] = {
    {"kind", OPC__SHAPE_U32, OPC__SLOT_KIND, 0}, {"detail", OPC__SHAPE_TEXT, OPC__SLOT_DETAIL, 0}};
static const opc__shape_field opc__shape_answer[] = { /* order: OPC__RES_SEND.. */
    {"Send", OPC__SHAPE_OUTCOME, OPC__SLOT_OUTCOME, 0},
    {"Get", OPC__SHAPE_FETCHED, OPC__SLOT_OUTCOME, 0},
    {"Ack", OPC__SHAPE_OUTCOME, OPC__SLOT_OUTCOME, 0},
    {"Ping", OPC__SHAPE_PONG, OPC__SLOT_OUTCOME, 0}};
static const opc__shape_field opc__shape_outcome[] = {
    {"Ok", OPC__SHAPE_BOOL, OPC__SLOT_FLAG, 0},
    {"Err", OPC__SHAPE_RPC_ERROR, OPC__SLOT_ERROR, 0}};
static const opc__shape_field opc__shape_fetched[] = {
    {"Ok", OPC__SHAPE_MESSAGE, OPC__SLOT_NONE, 0},
    {"Err", OPC__SHAPE_RPC_ERROR, OPC__SLOT_ERROR, 0}};
static const opc__shape_field opc__shape_message[] = {
    {"uid", OPC__SHAPE_U64, OPC__SLOT_UID, 0},
    {"from", OPC__SHAPE_IDENT, OPC__SLOT_NONE, 0},
    {"msg", OPC__SHAPE_TEXT, OPC__SLOT_MSG, 0}};
static const opc__shape_field opc__shape_rpc_error[] = { /* order: OPC__RERR_MUTEX.. */
    {"MutexError", OPC__SHAPE_TEXT, OPC__SLOT_DETAIL, 0},
    {"ParseError", OPC__SHAPE_TEXT, OPC__SLOT_DETAIL, 0},
    {"MessageTooLarge", OPC__SHAPE_TOO_LARGE, OPC__SLOT_LIMIT, 0},
    {"RateLimitExceeded", OPC__SHAPE_UNIT, OPC__SLOT_NONE, 0}};

static const opc__shape opc__shape_table[OPC__SHAPE_COUNT] = {
    {OPC__SHAPE_IS_IGNORED, 0, 0, 0, 0, NULL},
    {OPC__SHAPE_IS_NUMBER, 0, 0, 0, 255u, NULL},
    {OPC__SHAPE_IS_NUMBER, 0, 0, 0, 0xffffffffu, NULL},
    {OPC__SHAPE_IS_NUMBER, 0, 0, 0, UINT64_MAX, NULL},
    {OPC__SHAPE_IS_BOOL, 0, 0, 0, 0, NULL},
    {OPC__SHAPE_IS_TEXT, 0, 0, 0, 0, NULL},
    {OPC__SHAPE_IS_UNIT, 0, 0, 0, 0, NULL},
    {OPC__SHAPE_IS_ENUM, 0, 2, 0, 0, opc__shape_client},
    {OPC__SHAPE_IS_STRUCT, 0, 3, 0, 0, opc__shape_request},
    {OPC__SHAPE_IS_STRUCT, 0, 2, 0, 0, opc__shape_context},
    {OPC__SHAPE_IS_STRUCT, OPC__SHAPE_STRICT, 2, 0, 0, opc__shape_duration},
    {OPC__SHAPE_IS_STRUCT, 0, 3, 0, 0, opc__shape_trace},
    {OPC__SHAPE_IS_TUPLE, 0, 16, OPC__SHAPE_U8, 0, NULL},
    {OPC__SHAPE_IS_ENUM, 0, 2, 0, 0, opc__shape_sampling},
    {OPC__SHAPE_IS_STRUCT, 0, 2, 0, 0, opc__shape_cancel},
    {OPC__SHAPE_IS_ENUM, 0, 4, 0, 0, opc__shape_call},
    {OPC__SHAPE_IS_STRUCT, 0, 3, 0, 0, opc__shape_send},
    {OPC__SHAPE_IS_STRUCT, 0, 1, 0, 0, opc__shape_get_ack},
    {OPC__SHAPE_IS_STRUCT, 0, 2, 0, 0, opc__shape_get_ack},
    {OPC__SHAPE_IS_STRUCT, 0, 0, 0, 0, NULL},
    {OPC__SHAPE_IS_STRUCT, 0, 2, 0, 0, opc__shape_ident},
    {OPC__SHAPE_IS_STRUCT, 0, 2, 0, 0, opc__shape_response},
    {OPC__SHAPE_IS_ENUM, 0, 2, 0, 0, opc__shape_result},
    {OPC__SHAPE_IS_STRUCT, 0, 2, 0, 0, opc__shape_server_error},
    {OPC__SHAPE_IS_ENUM, 0, 4, 0, 0, opc__shape_answer},
    {OPC__SHAPE_IS_ENUM, 0, 2, 0, 0, opc__shape_outcome},
    {OPC__SHAPE_IS_ENUM, 0, 2, 0, 0, opc__shape_fetched},
    {OPC__SHAPE_IS_STRUCT, OPC__SHAPE_OR_NULL, 3, 0, 0, opc__shape_message},
    {OPC__SHAPE_IS_ENUM, OPC__SHAPE_OR_BOOL, 2, OPC__SLOT_FLAG, 0, opc__shape_outcome},
    {OPC__SHAPE_IS_ENUM, 0, 4, 0, 0, opc__shape_rpc_error},
    {OPC__SHAPE_IS_TUPLE, OPC__SHAPE_OR_NUMBER, 2, OPC__SHAPE_U64, 0, NULL}};

#define OPC__WALK_DEPTH 8u  /* the shapes above nest six deep */
#define OPC__WALK_NAME 20u  /* longest name is 17 characters */
#define OPC__WALK_UNKNOWN 0xffu

enum { OPC__WALK_IGNORE, OPC__WALK_KEY, OPC__WALK_BARE, OPC__WALK_VALUE };

typedef struct opc__walk_level {
    uint8_t shape;
    uint8_t slot;
    uint8_t array; /* a struct or tuple written as an array */
    uint8_t index; /* field or variant of the value due; in arrays: elements so far */
    uint32_t seen; /* fields met */
} opc__walk_level;

typedef struct opc__walk {
    opc__json json;
    uint64_t value[OPC__SLOT_COUNT];
    uint32_t set;  /* bit per slot */
    uint32_t skip; /* containers open within an ignored value */
    opcomms_err failed;
    uint8_t root;
    uint8_t depth;
    uint8_t text; /* OPC__WALK_IGNORE.. of the string under way */
    uint8_t slot; /* of a VALUE; of a BARE the slot of its enum */
    uint8_t shape; /* of a BARE */
    uint8_t name_len; /* OPC__WALK_NAME: too long to be known */
    char name[OPC__WALK_NAME];
    opc__walk_level level[OPC__WALK_DEPTH];
} opc__walk;

/* Receives the pieces of the texts that have a slot. */
typedef opcomms_err (*opc__walk_text_fn)(void *user, int slot, const uint8_t *p, size_t n);

OPC__FN void opc__walk_init(opc__walk *w, int root) {
    OPCOMMS_ASSERT(root > OPC__SHAPE_IGNORED);
    OPCOMMS_ASSERT(root < OPC__SHAPE_COUNT);
    memset(w, 0, sizeof *w);
    opc__json_init(&w->json);
    w->root = (uint8_t)root;
}

OPC__FN int opc__walk_has(const opc__walk *w, int slot) { return (w->set >> slot) & 1u; }

OPC__FN void opc__walk_set(opc__walk *w, unsigned slot, uint64_t value) {
    OPCOMMS_ASSERT(slot < OPC__SLOT_COUNT);
    if (slot == OPC__SLOT_NONE) return;
    w->value[slot] = value;
    w->set |= (uint32_t)1u << slot;
}

/* The index of the name just read, or OPC__WALK_UNKNOWN. */
OPC__FN unsigned opc__walk_find(const opc__walk *w, const opc__shape *s) {
    unsigned i;
    for (i = 0; i < s->count; i++) {
        size_t len = strlen(s->field[i].name);
        OPCOMMS_ASSERT(len < OPC__WALK_NAME);
        if (len == w->name_len && memcmp(s->field[i].name, w->name, len) == 0) return i;
    }
    return OPC__WALK_UNKNOWN;
}

/* What the value that begins now has to be, and where it goes. */
OPC__FN opcomms_err opc__walk_target(opc__walk *w, unsigned *shape, unsigned *slot) {
    opc__walk_level *l;
    const opc__shape *s;
    unsigned i;
    *shape = w->root;
    *slot = OPC__SLOT_TOP;
    if (w->depth == 0) return OPCOMMS_OK;
    l = &w->level[w->depth - 1u];
    s = &opc__shape_table[l->shape];
    i = l->index;
    if (l->array) {
        if (i >= s->count) return OPCOMMS_E_PROTOCOL; /* one element too many */
        l->index++;
    }
    if (s->kind == OPC__SHAPE_IS_TUPLE) {
        *shape = s->other;
        *slot = l->slot == OPC__SLOT_NONE ? (unsigned)OPC__SLOT_NONE : l->slot + i;
        return OPCOMMS_OK;
    }
    if (i == OPC__WALK_UNKNOWN) {
        *shape = OPC__SHAPE_IGNORED;
        *slot = OPC__SLOT_NONE;
        return OPCOMMS_OK;
    }
    OPCOMMS_ASSERT(i < s->count);
    *shape = s->field[i].shape;
    *slot = s->field[i].slot;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__walk_push(opc__walk *w, unsigned shape, unsigned slot, int array) {
    opc__walk_level *l;
    OPCOMMS_ASSERT(w->depth < OPC__WALK_DEPTH);
    l = &w->level[w->depth++];
    l->shape = (uint8_t)shape;
    l->slot = (uint8_t)slot;
    l->array = array ? 1 : 0;
    l->index = array ? 0 : OPC__WALK_UNKNOWN;
    l->seen = 0;
    return OPCOMMS_OK;
}

OPC__FN void opc__walk_text(opc__walk *w, int text, unsigned slot) {
    w->text = (uint8_t)text;
    w->slot = (uint8_t)slot;
    w->name_len = 0;
}

/* A value of `shape` begins with token t (or is it, when it is a scalar). */
OPC__FN opcomms_err opc__walk_value(opc__walk *w, const opc__json_token *t) {
    unsigned shape, slot;
    const opc__shape *s;
    int k = t->kind;
    opcomms_err rc = opc__walk_target(w, &shape, &slot);
    if (rc != OPCOMMS_OK) return rc;
    s = &opc__shape_table[shape];
    switch (s->kind) {
    case OPC__SHAPE_IS_IGNORED:
        if (k == OPC__JSON_OBJECT || k == OPC__JSON_ARRAY) w->skip = 1;
        opc__walk_text(w, OPC__WALK_IGNORE, OPC__SLOT_NONE);
        return OPCOMMS_OK;
    case OPC__SHAPE_IS_NUMBER:
        if (k != OPC__JSON_NUMBER || !t->is_u64 || t->u64 > s->max) return OPCOMMS_E_PROTOCOL;
        opc__walk_set(w, slot, t->u64);
        return OPCOMMS_OK;
    case OPC__SHAPE_IS_BOOL:
        if (k != OPC__JSON_TRUE && k != OPC__JSON_FALSE) return OPCOMMS_E_PROTOCOL;
        opc__walk_set(w, slot, k == OPC__JSON_TRUE);
        return OPCOMMS_OK;
    case OPC__SHAPE_IS_TEXT:
        if (k != OPC__JSON_TEXT) return OPCOMMS_E_PROTOCOL;
        opc__walk_text(w, OPC__WALK_VALUE, slot);
        opc__walk_set(w, slot, 0);
        return OPCOMMS_OK;
    case OPC__SHAPE_IS_UNIT: return k == OPC__JSON_NULL ? OPCOMMS_OK : OPCOMMS_E_PROTOCOL;
    case OPC__SHAPE_IS_STRUCT:
        if (k == OPC__JSON_NULL && (s->flags & OPC__SHAPE_OR_NULL)) return OPCOMMS_OK;
        if (k != OPC__JSON_OBJECT && k != OPC__JSON_ARRAY) return OPCOMMS_E_PROTOCOL;
        return opc__walk_push(w, shape, slot, k == OPC__JSON_ARRAY);
    case OPC__SHAPE_IS_TUPLE:
        if (k == OPC__JSON_NUMBER && (s->flags & OPC__SHAPE_OR_NUMBER) && t->is_u64) {
            opc__walk_set(w, slot, t->u64);
            return OPCOMMS_OK;
        }
        if (k != OPC__JSON_ARRAY) return OPCOMMS_E_PROTOCOL;
        return opc__walk_push(w, shape, slot, 1);
    default: break;
    }
    OPCOMMS_ASSERT(s->kind == OPC__SHAPE_IS_ENUM);
    if (k == OPC__JSON_OBJECT) return opc__walk_push(w, shape, slot, 0);
    if ((k == OPC__JSON_TRUE || k == OPC__JSON_FALSE) && (s->flags & OPC__SHAPE_OR_BOOL)) {
        opc__walk_set(w, s->other, k == OPC__JSON_TRUE);
        return OPCOMMS_OK;
    }
    if (k != OPC__JSON_TEXT) return OPCOMMS_E_PROTOCOL;
    opc__walk_text(w, OPC__WALK_BARE, slot);
    w->shape = (uint8_t)shape;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__walk_key(opc__walk *w) {
    opc__walk_level *l = &w->level[w->depth - 1u];
    const opc__shape *s = &opc__shape_table[l->shape];
    unsigned i = opc__walk_find(w, s);
    OPCOMMS_ASSERT(!l->array);
    if (s->kind == OPC__SHAPE_IS_ENUM) {
        if (l->seen != 0) return OPCOMMS_E_PROTOCOL; /* a second key */
        if (i == OPC__WALK_UNKNOWN) return OPCOMMS_E_PROTOCOL;
        opc__walk_set(w, l->slot, i);
    } else if (i == OPC__WALK_UNKNOWN) {
        if (s->flags & OPC__SHAPE_STRICT) return OPCOMMS_E_PROTOCOL;
    } else if ((l->seen >> i) & 1u) {
        return OPCOMMS_E_PROTOCOL; /* a known key twice */
    }
    if (i != OPC__WALK_UNKNOWN) l->seen |= (uint32_t)1u << i;
    l->index = (uint8_t)i;
    return OPCOMMS_OK;
}

/* An enum written as a bare string: only a variant that holds nothing. */
OPC__FN opcomms_err opc__walk_bare(opc__walk *w) {
    const opc__shape *s = &opc__shape_table[w->shape];
    unsigned i = opc__walk_find(w, s);
    if (i == OPC__WALK_UNKNOWN || s->field[i].shape != OPC__SHAPE_UNIT) return OPCOMMS_E_PROTOCOL;
    opc__walk_set(w, w->slot, i);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__walk_close(opc__walk *w) {
    const opc__walk_level *l;
    const opc__shape *s;
    unsigned i;
    OPCOMMS_ASSERT(w->depth > 0);
    l = &w->level[w->depth - 1u];
    s = &opc__shape_table[l->shape];
    w->depth--;
    if (l->array) return l->index == s->count ? OPCOMMS_OK : OPCOMMS_E_PROTOCOL;
    if (s->kind == OPC__SHAPE_IS_ENUM) return l->seen != 0 ? OPCOMMS_OK : OPCOMMS_E_PROTOCOL;
    for (i = 0; i < s->count; i++) {
        if (!s->field[i].optional && !((l->seen >> i) & 1u)) return OPCOMMS_E_PROTOCOL;
    }
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__walk_piece(opc__walk *w, const opc__json_token *t, opc__walk_text_fn text,
                                    void *user) {
    if (w->text == OPC__WALK_IGNORE) return OPCOMMS_OK;
    if (w->text == OPC__WALK_VALUE) {
        w->value[w->slot] += t->n;
        return text(user, w->slot, t->p, t->n);
    }
    OPCOMMS_ASSERT(w->name_len <= OPC__WALK_NAME);
    if (t->n >= (size_t)(OPC__WALK_NAME - w->name_len)) {
        w->name_len = OPC__WALK_NAME;
        return OPCOMMS_OK;
    }
    memcpy(w->name + w->name_len, t->p, t->n);
    w->name_len = (uint8_t)(w->name_len + t->n);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__walk_token(opc__walk *w, const opc__json_token *t, opc__walk_text_fn text,
                                    void *user) {
    int open = t->kind == OPC__JSON_OBJECT || t->kind == OPC__JSON_ARRAY;
    int close = t->kind == OPC__JSON_OBJECT_END || t->kind == OPC__JSON_ARRAY_END;
    if (w->skip > 0) {
        if (open) w->skip++;
        if (close) w->skip--;
        return OPCOMMS_OK; /* texts in there are IGNORE already */
    }
    if (close) return opc__walk_close(w);
    if (t->kind == OPC__JSON_PIECE) return opc__walk_piece(w, t, text, user);
    if (t->kind == OPC__JSON_TEXT_END) {
        if (w->text == OPC__WALK_KEY) return opc__walk_key(w);
        if (w->text == OPC__WALK_BARE) return opc__walk_bare(w);
        return OPCOMMS_OK;
    }
    if (t->kind == OPC__JSON_TEXT && t->key) {
        OPCOMMS_ASSERT(w->depth > 0);
        opc__walk_text(w, OPC__WALK_KEY, OPC__SLOT_NONE);
        return OPCOMMS_OK;
    }
    return opc__walk_value(w, t);
}

/* Feeds bytes of the document. Any error stays: later calls return it again. */
OPC__FN opcomms_err opc__walk_feed(opc__walk *w, const uint8_t *p, size_t n, opc__walk_text_fn text,
                                   void *user) {
    const uint8_t *at = p;
    OPCOMMS_ASSERT(p != NULL || n == 0);
    while (n > 0 && w->failed == OPCOMMS_OK) {
        opc__json_token t;
        w->failed = opc__json_step(&w->json, &at, p + n, &t);
        if (w->failed != OPCOMMS_OK || t.kind == OPC__JSON_MORE) break;
        w->failed = opc__walk_token(w, &t, text, user);
    }
    return w->failed;
}

OPC__FN opcomms_err opc__walk_end(opc__walk *w) {
    if (w->failed == OPCOMMS_OK && !opc__json_done(&w->json)) w->failed = OPCOMMS_E_PROTOCOL;
    OPCOMMS_ASSERT(w->failed != OPCOMMS_OK || w->depth == 0);
    OPCOMMS_ASSERT(w->failed != OPCOMMS_OK || w->skip == 0);
    return w->failed;
}

/* >>tarpc ==== L2 ==== the reference's requests and answers: parsers and writers */

#define OPC__DEST_MAX 1024u                           /* longest destination hash text kept */
#define OPC__DEADLINE_MAX ((uint64_t)1 << 53)         /* milliseconds; longer is clamped to it */
#define OPC__DEADLINE_DEFAULT 10000u                  /* when the context has none */

enum {
    OPC__REQ_SEND = 1,
    OPC__REQ_GET,
    OPC__REQ_ACK,
    OPC__REQ_PING,
    OPC__REQ_CANCEL
};

typedef struct opc__request {
    int kind;
    uint64_t id; /* of CANCEL: the request meant */
    uint64_t deadline_ms;
    uint8_t from_id; /* of SEND */
    uint8_t dest_id; /* of SEND, GET, ACK */
    uint64_t uid;    /* of ACK */
    uint32_t dest_len;
    int dest_cut; /* the text was longer than OPC__DEST_MAX; the rest is lost */
    uint8_t dest[OPC__DEST_MAX];
    uint64_t msg_bytes;
} opc__request;

/* Pieces of the decoded "msg", in order, valid UTF-8 as a whole but cut anywhere. An error ends the
   parse and is returned by feed. What was delivered counts only if the request's end succeeds. */
typedef opcomms_err (*opc__data_fn)(void *user, const uint8_t *p, size_t n);

typedef struct opc__request_parser {
    opc__walk walk;
    opc__data_fn msg;
    void *user;
    opc__request request;
} opc__request_parser;
OPC__STATIC_ASSERT(request_parser, sizeof(opc__request_parser) <= 2560u);

/* Call at the beginning of each frame. msg may be NULL. */
OPC__FN void opc__request_begin(opc__request_parser *q, opc__data_fn msg, void *user) {
    opc__walk_init(&q->walk, OPC__SHAPE_CLIENT);
    memset(&q->request, 0, offsetof(opc__request, dest));
    q->request.msg_bytes = 0;
    q->msg = msg;
    q->user = user;
}

OPC__FN opcomms_err opc__request_text(void *user, int slot, const uint8_t *p, size_t n) {
    opc__request_parser *q = (opc__request_parser *)user;
    opc__request *r = &q->request;
    size_t room = OPC__DEST_MAX - r->dest_len;
    if (slot == OPC__SLOT_MSG) return q->msg != NULL ? q->msg(q->user, p, n) : OPCOMMS_OK;
    OPCOMMS_ASSERT(slot == OPC__SLOT_HASH);
    OPCOMMS_ASSERT(r->dest_len <= OPC__DEST_MAX);
    if (n > room) {
        n = room;
        r->dest_cut = 1;
    }
    if (n > 0) memcpy(r->dest + r->dest_len, p, n);
    r->dest_len += (uint32_t)n;
    return OPCOMMS_OK;
}

/* OPCOMMS_E_PROTOCOL for whatever the reference would close the connection for; or what the msg
   callback returned. */
OPC__FN opcomms_err opc__request_feed(opc__request_parser *q, const uint8_t *p, size_t n) {
    return opc__walk_feed(&q->walk, p, n, opc__request_text, q);
}

/* Deadlines of any size are accepted: nanos of 10^9 and more carry, all is clamped. */
OPC__FN uint64_t opc__request_deadline(const opc__walk *w) {
    uint64_t secs = w->value[OPC__SLOT_SECS], ms;
    if (!opc__walk_has(w, OPC__SLOT_SECS)) return OPC__DEADLINE_DEFAULT;
    if (secs > OPC__DEADLINE_MAX / 1000u) return OPC__DEADLINE_MAX;
    ms = secs * 1000u + w->value[OPC__SLOT_NANOS] / 1000000u;
    return ms < OPC__DEADLINE_MAX ? ms : OPC__DEADLINE_MAX;
}

/* Call at the last byte of the frame. *out lives in the parser until the next begin. */
OPC__FN opcomms_err opc__request_end(opc__request_parser *q, const opc__request **out) {
    opc__walk *w = &q->walk;
    opc__request *r = &q->request;
    opcomms_err rc = opc__walk_end(w);
    if (rc != OPCOMMS_OK) return rc;
    OPCOMMS_ASSERT(opc__walk_has(w, OPC__SLOT_TOP));
    OPCOMMS_ASSERT(opc__walk_has(w, OPC__SLOT_ID));
    r->id = w->value[OPC__SLOT_ID];
    r->kind = OPC__REQ_CANCEL;
    if (w->value[OPC__SLOT_TOP] == 0) r->kind = OPC__REQ_SEND + (int)w->value[OPC__SLOT_CALL];
    r->deadline_ms = opc__request_deadline(w);
    r->from_id = (uint8_t)w->value[OPC__SLOT_FROM_ID];
    r->dest_id = (uint8_t)w->value[OPC__SLOT_IDENT_ID];
    r->uid = w->value[OPC__SLOT_UID];
    r->msg_bytes = w->value[OPC__SLOT_MSG];
    OPCOMMS_ASSERT(r->kind <= OPC__REQ_CANCEL);
    *out = r;
    return OPCOMMS_OK;
}

enum {
    OPC__RES_SEND = 1,
    OPC__RES_GET,
    OPC__RES_ACK,
    OPC__RES_PING,
    OPC__RES_TOO_LARGE,   /* of a reply to be written: MessageTooLarge for a Send */
    OPC__RES_ERROR,       /* the call named by `call` failed: Err of Send, Get, Ack or Ping */
    OPC__RES_SERVER_ERROR /* the server did not carry out the request */
};
enum { OPC__RERR_MUTEX = 1, OPC__RERR_PARSE, OPC__RERR_TOO_LARGE, OPC__RERR_RATE };

typedef struct opc__response {
    int kind;
    int call; /* OPC__RES_SEND.. also of OPC__RES_ERROR; 0 of OPC__RES_SERVER_ERROR */
    uint64_t request_id;
    int flag;             /* Ok(true/false); of GET: 1 a message is present, 0 null */
    int error;            /* OPC__RERR_* of OPC__RES_ERROR */
    uint64_t limit_kb;    /* of OPC__RERR_TOO_LARGE */
    uint64_t got_kb;      /* the same; 0 from servers that do not tell */
    uint32_t server_kind; /* of OPC__RES_SERVER_ERROR, 0 to 17; unknown ones are 16, Other */
    char detail[160];     /* error text, cut between characters, control characters as '?' */
    uint64_t uid;         /* this and below of GET with a message */
    uint8_t from_id;
    uint32_t from_len;
    uint8_t from[128];
    int from_cut;
    uint64_t msg_bytes;
} opc__response;

typedef struct opc__response_parser {
    opc__walk walk;
    opc__data_fn msg;
    void *user;
    size_t detail_len;
    opc__response response;
} opc__response_parser;
OPC__STATIC_ASSERT(response_parser, sizeof(opc__response_parser) <= 2560u);

/* Call at the beginning of each frame. msg gets the pieces of Get's message and may be NULL. */
OPC__FN void opc__response_begin(opc__response_parser *q, opc__data_fn msg, void *user) {
    memset(q, 0, sizeof *q);
    opc__walk_init(&q->walk, OPC__SHAPE_RESPONSE);
    q->msg = msg;
    q->user = user;
}

OPC__FN opcomms_err opc__response_text(void *user, int slot, const uint8_t *p, size_t n) {
    opc__response_parser *q = (opc__response_parser *)user;
    opc__response *r = &q->response;
    size_t i;
    if (slot == OPC__SLOT_MSG) return q->msg != NULL ? q->msg(q->user, p, n) : OPCOMMS_OK;
    if (slot == OPC__SLOT_HASH) {
        size_t room = sizeof r->from - r->from_len;
        if (n > room) {
            n = room;
            r->from_cut = 1;
        }
        if (n > 0) memcpy(r->from + r->from_len, p, n);
        r->from_len += (uint32_t)n;
        return OPCOMMS_OK;
    }
    OPCOMMS_ASSERT(slot == OPC__SLOT_DETAIL);
    OPCOMMS_ASSERT(q->detail_len < sizeof r->detail);
    for (i = 0; i < n && q->detail_len < sizeof r->detail - 1; i++) {
        r->detail[q->detail_len++] = p[i] < 0x20 || p[i] == 0x7f ? '?' : (char)p[i];
    }
    return OPCOMMS_OK;
}

/* As opc__request_feed, with what the reference's client takes and the newer error variants. */
OPC__FN opcomms_err opc__response_feed(opc__response_parser *q, const uint8_t *p, size_t n) {
    return opc__walk_feed(&q->walk, p, n, opc__response_text, q);
}

/* A text that was cut must not end within a character. */
OPC__FN void opc__response_trim(char *s, size_t len) {
    while (len > 0 && !opc__str_utf8_valid((const uint8_t *)s, len)) len--;
    s[len] = 0;
}

OPC__FN void opc__response_error(const opc__walk *w, opc__response *r) {
    opc__text t;
    r->kind = OPC__RES_ERROR;
    r->error = OPC__RERR_MUTEX + (int)w->value[OPC__SLOT_ERROR];
    OPCOMMS_ASSERT(r->error <= OPC__RERR_RATE);
    if (r->error == OPC__RERR_MUTEX || r->error == OPC__RERR_PARSE) return;
    opc__text_init(&t, r->detail, sizeof r->detail);
    if (r->error == OPC__RERR_RATE) {
        opc__text_str(&t, "the rate limit is exceeded");
        return;
    }
    r->limit_kb = w->value[OPC__SLOT_LIMIT];
    r->got_kb = w->value[OPC__SLOT_GOT];
    opc__text_str(&t, "the message is too large, the limit is ");
    opc__text_u64(&t, r->limit_kb);
    opc__text_str(&t, " KB");
}

/* Call at the last byte of the frame. *out lives in the parser until the next begin. */
OPC__FN opcomms_err opc__response_end(opc__response_parser *q, const opc__response **out) {
    opc__walk *w = &q->walk;
    opc__response *r = &q->response;
    opcomms_err rc = opc__walk_end(w);
    if (rc != OPCOMMS_OK) return rc;
    OPCOMMS_ASSERT(opc__walk_has(w, OPC__SLOT_ID));
    OPCOMMS_ASSERT(opc__walk_has(w, OPC__SLOT_TOP));
    r->request_id = w->value[OPC__SLOT_ID];
    opc__response_trim(r->detail, q->detail_len);
    if (w->value[OPC__SLOT_TOP] == 1) {
        r->kind = OPC__RES_SERVER_ERROR;
        r->server_kind = w->value[OPC__SLOT_KIND] <= 17u ? (uint32_t)w->value[OPC__SLOT_KIND] : 16u;
    } else {
        r->call = OPC__RES_SEND + (int)w->value[OPC__SLOT_CALL];
        r->kind = r->call;
        OPCOMMS_ASSERT(r->call <= OPC__RES_PING);
        r->flag = (int)w->value[OPC__SLOT_FLAG];
        if (w->value[OPC__SLOT_OUTCOME] == 1) {
            opc__response_error(w, r);
        } else if (r->call == OPC__RES_GET && opc__walk_has(w, OPC__SLOT_UID)) {
            r->flag = 1;
            r->uid = w->value[OPC__SLOT_UID];
            r->from_id = (uint8_t)w->value[OPC__SLOT_IDENT_ID];
            r->msg_bytes = w->value[OPC__SLOT_MSG];
        }
    }
    *out = r;
    return OPCOMMS_OK;
}

/* Writers. Exact bytes of the reference: no white space, its field order, no NUL behind. All return
   the length, or 0 when cap is too small. */

#define OPC__TARPC_SEND_TAIL "\"}}}}"
#define OPC__TARPC_GET_TAIL "\"}}}}}"

OPC__FN void opc__tarpc_str(opc__wr *w, const char *s) { opc__wr_bytes(w, s, strlen(s)); }

OPC__FN void opc__tarpc_u64(opc__wr *w, uint64_t v) {
    char digits[24];
    opc__text t;
    opc__text_init(&t, digits, sizeof digits);
    opc__text_u64(&t, v);
    OPCOMMS_ASSERT(!t.cut);
    opc__wr_bytes(w, t.p, t.len);
}

OPC__FN void opc__tarpc_escaped(opc__wr *w, const uint8_t *p, size_t n) {
    opc__render r;
    size_t i;
    opc__render_init(&r, OPC__RENDER_TEXT);
    for (i = 0; i < n; i++) {
        uint8_t text[6];
        opc__wr_bytes(w, text, opc__render_byte(&r, p[i], text));
    }
}

OPC__FN size_t opc__tarpc_done(const opc__wr *w) { return w->full ? 0 : opc__wr_len(w); }

OPC__FN void opc__tarpc_trace(opc__wr *w, uint64_t span_id) {
    opc__tarpc_str(w, "\"trace_context\":{\"trace_id\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],"
                      "\"span_id\":");
    opc__tarpc_u64(w, span_id);
    opc__tarpc_str(w, ",\"sampling_decision\":\"Unsampled\"}");
}

/* Up to and including "message": */
OPC__FN void opc__tarpc_open(opc__wr *w, uint64_t id, uint64_t deadline_us, uint64_t span_id) {
    opc__tarpc_str(w, "{\"Request\":{\"context\":{\"deadline\":{\"secs\":");
    opc__tarpc_u64(w, deadline_us / 1000000u);
    opc__tarpc_str(w, ",\"nanos\":");
    opc__tarpc_u64(w, deadline_us % 1000000u * 1000u);
    opc__tarpc_str(w, "},");
    opc__tarpc_trace(w, span_id);
    opc__tarpc_str(w, "},\"id\":");
    opc__tarpc_u64(w, id);
    opc__tarpc_str(w, ",\"message\":");
}

/* deadline_us: microseconds left. span_id: random, not zero. */
OPC__FN size_t opc__tarpc_ping(uint8_t *out, size_t cap, uint64_t id, uint64_t deadline_us,
                               uint64_t span_id) {
    opc__wr w;
    opc__wr_init(&w, out, cap);
    opc__tarpc_open(&w, id, deadline_us, span_id);
    opc__tarpc_str(&w, "{\"Ping\":{}}}}");
    return opc__tarpc_done(&w);
}

OPC__FN size_t opc__tarpc_get(uint8_t *out, size_t cap, uint64_t id, uint64_t deadline_us,
                              uint64_t span_id, uint8_t dest_id) {
    opc__wr w;
    opc__wr_init(&w, out, cap);
    opc__tarpc_open(&w, id, deadline_us, span_id);
    opc__tarpc_str(&w, "{\"Get\":{\"dest_id\":");
    opc__tarpc_u64(&w, dest_id);
    opc__tarpc_str(&w, "}}}}");
    return opc__tarpc_done(&w);
}

OPC__FN size_t opc__tarpc_ack(uint8_t *out, size_t cap, uint64_t id, uint64_t deadline_us,
                              uint64_t span_id, uint8_t dest_id, uint64_t uid) {
    opc__wr w;
    opc__wr_init(&w, out, cap);
    opc__tarpc_open(&w, id, deadline_us, span_id);
    opc__tarpc_str(&w, "{\"Ack\":{\"dest_id\":");
    opc__tarpc_u64(&w, dest_id);
    opc__tarpc_str(&w, ",\"uid\":");
    opc__tarpc_u64(&w, uid);
    opc__tarpc_str(&w, "}}}}");
    return opc__tarpc_done(&w);
}

OPC__FN size_t opc__tarpc_cancel(uint8_t *out, size_t cap, uint64_t id, uint64_t span_id) {
    opc__wr w;
    opc__wr_init(&w, out, cap);
    opc__tarpc_str(&w, "{\"Cancel\":{");
    opc__tarpc_trace(&w, span_id);
    opc__tarpc_str(&w, ",\"request_id\":");
    opc__tarpc_u64(&w, id);
    opc__tarpc_str(&w, "}}");
    return opc__tarpc_done(&w);
}

/* Everything before the message's text; the caller renders that, then OPC__TARPC_SEND_TAIL. */
OPC__FN size_t opc__tarpc_send_head(uint8_t *out, size_t cap, uint64_t id, uint64_t deadline_us,
                                    uint64_t span_id, uint8_t from_id, const uint8_t *dest,
                                    size_t dest_len, uint8_t dest_id) {
    opc__wr w;
    opc__wr_init(&w, out, cap);
    opc__tarpc_open(&w, id, deadline_us, span_id);
    opc__tarpc_str(&w, "{\"Send\":{\"from_id\":");
    opc__tarpc_u64(&w, from_id);
    opc__tarpc_str(&w, ",\"dest\":{\"pubkey_hash\":\"");
    opc__tarpc_escaped(&w, dest, dest_len);
    opc__tarpc_str(&w, "\",\"id\":");
    opc__tarpc_u64(&w, dest_id);
    opc__tarpc_str(&w, "},\"msg\":\"");
    return opc__tarpc_done(&w);
}

/* Up to and including "message": */
OPC__FN void opc__tarpc_reply(opc__wr *w, uint64_t request_id) {
    opc__tarpc_str(w, "{\"request_id\":");
    opc__tarpc_u64(w, request_id);
    opc__tarpc_str(w, ",\"message\":");
}

OPC__FN size_t opc__tarpc_reply_flag(uint8_t *out, size_t cap, uint64_t request_id,
                                     const char *before, int ok, const char *after) {
    opc__wr w;
    opc__wr_init(&w, out, cap);
    opc__tarpc_reply(&w, request_id);
    opc__tarpc_str(&w, before);
    opc__tarpc_str(&w, ok ? "true" : "false");
    opc__tarpc_str(&w, after);
    return opc__tarpc_done(&w);
}

OPC__FN size_t opc__tarpc_reply_send(uint8_t *out, size_t cap, uint64_t request_id, int ok) {
    return opc__tarpc_reply_flag(out, cap, request_id, "{\"Ok\":{\"Send\":{\"Ok\":", ok, "}}}}");
}

OPC__FN size_t opc__tarpc_reply_ack(uint8_t *out, size_t cap, uint64_t request_id, int ok) {
    return opc__tarpc_reply_flag(out, cap, request_id, "{\"Ok\":{\"Ack\":{\"Ok\":", ok, "}}}}");
}

/* The reference of v0.5.0 sends and takes a bare bool; later ones wrap it like the others. */
OPC__FN size_t opc__tarpc_reply_ping(uint8_t *out, size_t cap, uint64_t request_id, int ok,
                                     int newer_form) {
    if (newer_form) {
        return opc__tarpc_reply_flag(out, cap, request_id, "{\"Ok\":{\"Ping\":{\"Ok\":", ok,
                                     "}}}}");
    }
    return opc__tarpc_reply_flag(out, cap, request_id, "{\"Ok\":{\"Ping\":", ok, "}}}");
}

OPC__FN size_t opc__tarpc_reply_get_null(uint8_t *out, size_t cap, uint64_t request_id) {
    opc__wr w;
    opc__wr_init(&w, out, cap);
    opc__tarpc_reply(&w, request_id);
    opc__tarpc_str(&w, "{\"Ok\":{\"Get\":{\"Ok\":null}}}}");
    return opc__tarpc_done(&w);
}

/* Everything before the message's text; the caller renders that, then OPC__TARPC_GET_TAIL. */
OPC__FN size_t opc__tarpc_reply_get_head(uint8_t *out, size_t cap, uint64_t request_id,
                                         uint64_t uid, const uint8_t *from, size_t from_len,
                                         uint8_t from_id) {
    opc__wr w;
    opc__wr_init(&w, out, cap);
    opc__tarpc_reply(&w, request_id);
    opc__tarpc_str(&w, "{\"Ok\":{\"Get\":{\"Ok\":{\"uid\":");
    opc__tarpc_u64(&w, uid);
    opc__tarpc_str(&w, ",\"from\":{\"pubkey_hash\":\"");
    opc__tarpc_escaped(&w, from, from_len);
    opc__tarpc_str(&w, "\",\"id\":");
    opc__tarpc_u64(&w, from_id);
    opc__tarpc_str(&w, "},\"msg\":\"");
    return opc__tarpc_done(&w);
}

/* call: OPC__RES_SEND to OPC__RES_PING; variant_json: as {"MutexError":"storage"}. A peer of v0.5.0
   cannot parse an Err of Ping, nor variants other than MutexError and ParseError. */
OPC__FN size_t opc__tarpc_reply_error(uint8_t *out, size_t cap, uint64_t request_id, int call,
                                      const char *variant_json) {
    opc__wr w;
    OPCOMMS_ASSERT(call >= OPC__RES_SEND);
    OPCOMMS_ASSERT(call <= OPC__RES_PING);
    opc__wr_init(&w, out, cap);
    opc__tarpc_reply(&w, request_id);
    opc__tarpc_str(&w, "{\"Ok\":{\"");
    opc__tarpc_str(&w, opc__shape_answer[call - OPC__RES_SEND].name);
    opc__tarpc_str(&w, "\":{\"Err\":");
    opc__tarpc_str(&w, variant_json);
    opc__tarpc_str(&w, "}}}}");
    return opc__tarpc_done(&w);
}

/* The newer protocol's refusal of a Send by size, both in units of 1 024 bytes. */
OPC__FN size_t opc__tarpc_reply_too_large(uint8_t *out, size_t cap, uint64_t request_id,
                                          uint64_t most_kb, uint64_t got_kb) {
    char variant[96];
    opc__text t;
    opc__text_init(&t, variant, sizeof variant);
    opc__text_str(&t, "{\"MessageTooLarge\":[");
    opc__text_u64(&t, most_kb);
    opc__text_str(&t, ",");
    opc__text_u64(&t, got_kb);
    opc__text_str(&t, "]}");
    OPCOMMS_ASSERT(!t.cut);
    return opc__tarpc_reply_error(out, cap, request_id, OPC__RES_SEND, variant);
}

/* kind: PROTOCOL numbers as 10 WouldBlock, 16 Other; detail: UTF-8 text. */
OPC__FN size_t opc__tarpc_reply_server_error(uint8_t *out, size_t cap, uint64_t request_id,
                                             uint32_t kind, const char *detail) {
    opc__wr w;
    opc__wr_init(&w, out, cap);
    opc__tarpc_reply(&w, request_id);
    opc__tarpc_str(&w, "{\"Err\":{\"kind\":");
    opc__tarpc_u64(&w, kind);
    opc__tarpc_str(&w, ",\"detail\":\"");
    opc__tarpc_escaped(&w, (const uint8_t *)detail, strlen(detail));
    opc__tarpc_str(&w, "\"}}}");
    return opc__tarpc_done(&w);
}

/* >>yaml ==== L2 ==== the YAML of the reference's files: one mapping of text to text or list */

/* Block and flow (JSON) form, comments, quotes, CRLF, BOM, "---" and "...". What is exotic
   (anchors, tags, block scalars, explicit keys, multi-line scalars) is refused, never misread.
   Events go to `on`; an error ends the parse and is returned. Where `groups` is set, a value may
   be a mapping too, GROUP to END, but none within it: a settings file has no more. */
#define OPC__YAML_TEXT 2048u

enum {
    OPC__YAML_KEY = 0,
    OPC__YAML_SCALAR,
    OPC__YAML_NULL,
    OPC__YAML_LIST,
    OPC__YAML_ITEM,
    OPC__YAML_GROUP,
    OPC__YAML_END
};

/* Returns NULL, or what is wrong. NULL scalars carry their spelling too. */
typedef const char *(*opc__yaml_fn)(void *user, int event, const char *text, size_t len);

typedef struct opc__yaml {
    const char *p;
    const char *end;
    uint32_t line;
    const char *line_start;
    opc__yaml_fn on;
    void *user;
    int groups;
    char text[OPC__YAML_TEXT];
    size_t len;
    int quoted;
} opc__yaml;

OPC__FN int opc__yaml_at(const opc__yaml *y, char c) { return y->p < y->end && *y->p == c; }
OPC__FN int opc__yaml_eol(const opc__yaml *y) {
    return y->p == y->end || *y->p == '\n' || *y->p == '\r';
}
OPC__FN int opc__yaml_gap(const opc__yaml *y, const char *p) {
    return p >= y->end || *p == ' ' || *p == '\t' || *p == '\n' || *p == '\r';
}

OPC__FN void opc__yaml_newline(opc__yaml *y) {
    if (opc__yaml_at(y, '\r')) y->p++;
    if (opc__yaml_at(y, '\n')) y->p++;
    y->line++;
    y->line_start = y->p;
}

OPC__FN void opc__yaml_spaces(opc__yaml *y) {
    while (y->p < y->end && (*y->p == ' ' || *y->p == '\t')) y->p++;
}

/* Spaces and a comment up to the end of the line; 0 when something else stands there. */
OPC__FN int opc__yaml_rest(opc__yaml *y) {
    const char *start = y->p;
    opc__yaml_spaces(y);
    if (opc__yaml_at(y, '#') && (y->p > start || y->p == y->line_start)) {
        while (!opc__yaml_eol(y)) y->p++;
    }
    return opc__yaml_eol(y);
}

/* Goes to the first character of the next line that has content; NULL or an error. */
OPC__FN const char *opc__yaml_next_line(opc__yaml *y) {
    for (;;) {
        const char *p;
        while (opc__yaml_at(y, ' ')) y->p++;
        if (opc__yaml_at(y, '#')) { /* a line of its own, however deep */
            while (!opc__yaml_eol(y)) y->p++;
        }
        p = y->p;
        if (opc__yaml_at(y, '\t')) {
            opc__yaml_spaces(y);
            if (!opc__yaml_eol(y) && !opc__yaml_at(y, '#')) return "a tab cannot indent";
        }
        if (!opc__yaml_rest(y)) {
            y->p = p;
            return NULL;
        }
        if (y->p == y->end) return NULL;
        opc__yaml_newline(y);
    }
}

OPC__FN size_t opc__yaml_column(const opc__yaml *y) { return (size_t)(y->p - y->line_start); }

OPC__FN int opc__yaml_marker(const opc__yaml *y, const char *mark) {
    return opc__yaml_column(y) == 0 && (size_t)(y->end - y->p) >= 3 && memcmp(y->p, mark, 3) == 0 &&
           opc__yaml_gap(y, y->p + 3);
}

OPC__FN const char *opc__yaml_put(opc__yaml *y, const char *s, size_t n) {
    if (n > sizeof y->text - y->len) return "the text is too long";
    memcpy(y->text + y->len, s, n);
    y->len += n;
    return NULL;
}

OPC__FN const char *opc__yaml_utf8(opc__yaml *y, uint32_t u) {
    char b[4];
    size_t n = 0;
    if (u >= 0xd800u && u <= 0xdfffu) return "a surrogate is no character";
    if (u > 0x10ffffu) return "no such character";
    if (u < 0x80u) {
        b[n++] = (char)u;
    } else if (u < 0x800u) {
        b[n++] = (char)(0xc0u | (u >> 6));
        b[n++] = (char)(0x80u | (u & 63u));
    } else {
        if (u >= 0x10000u) {
            b[n++] = (char)(0xf0u | (u >> 18));
            b[n++] = (char)(0x80u | ((u >> 12) & 63u));
        } else {
            b[n++] = (char)(0xe0u | (u >> 12));
        }
        b[n++] = (char)(0x80u | ((u >> 6) & 63u));
        b[n++] = (char)(0x80u | (u & 63u));
    }
    return opc__yaml_put(y, b, n);
}

OPC__FN const char *opc__yaml_escape(opc__yaml *y) {
    static const char from[] = "0abtnvfre\"/\\ ", to[] = "\0\a\b\t\n\v\f\r\033\"/\\ ";
    const char *at;
    unsigned digits = 0, i;
    uint32_t u = 0;
    char c;
    if (y->p == y->end) return "the quote is not closed";
    c = *y->p++;
    if (c == 'x') digits = 2;
    if (c == 'u') digits = 4;
    if (c == 'U') digits = 8;
    if (digits == 0) {
        at = (const char *)memchr(from, c, sizeof from - 1);
        if (at == NULL) return "unknown escape";
        return opc__yaml_put(y, &to[at - from], 1);
    }
    for (i = 0; i < digits; i++) {
        int v = y->p < y->end ? opc__str_hex_value((unsigned char)*y->p) : -1;
        if (v < 0) return "bad escape";
        u = (u << 4) | (uint32_t)v;
        y->p++;
    }
    return opc__yaml_utf8(y, u);
}

OPC__FN const char *opc__yaml_quoted(opc__yaml *y) {
    char quote = *y->p++;
    const char *bad = NULL;
    y->quoted = 1;
    for (;;) {
        char c;
        if (opc__yaml_eol(y)) return "the quote is not closed on this line";
        c = *y->p++;
        if (c == quote) {
            if (quote == '"' || !opc__yaml_at(y, '\'')) return NULL;
            y->p++; /* '' inside '...' */
        }
        bad = c == '\\' && quote == '"' ? opc__yaml_escape(y) : opc__yaml_put(y, &c, 1);
        if (bad != NULL) return bad;
    }
}

/* A plain scalar up to ": ", " #", the end of the line, or in flow a bracket or comma. */
OPC__FN const char *opc__yaml_plain(opc__yaml *y, int flow) {
    const char *start = y->p, *last = y->p;
    char c = *start;
    if (strchr(",[]{}#&*!|>'\"%@`", c) != NULL) return "this character cannot begin a plain text";
    if ((c == '-' || c == '?' || c == ':') && opc__yaml_gap(y, start + 1)) {
        return "a mapping of key: value is expected";
    }
    if (flow && (c == ':' || c == '?')) {
        return "this character cannot begin a plain text in brackets";
    }
    while (!opc__yaml_eol(y)) {
        c = *y->p;
        if (c == ':' && opc__yaml_gap(y, y->p + 1)) break;
        if (c == ':' && flow && strchr(",?[]{}", y->p[1]) != NULL) {
            return "a colon needs a space behind it";
        }
        if (c == '#' && y->p > start && (y->p[-1] == ' ' || y->p[-1] == '\t')) break;
        if (flow && strchr(",[]{}", c) != NULL) break;
        y->p++;
        if (c != ' ' && c != '\t') last = y->p;
    }
    y->p = last;
    return opc__yaml_put(y, start, (size_t)(last - start));
}

OPC__FN const char *opc__yaml_scalar(opc__yaml *y, int flow) {
    y->len = 0;
    y->quoted = 0;
    if (y->p == y->end) return "the file ends in the middle";
    if (*y->p == '"' || *y->p == '\'') return opc__yaml_quoted(y);
    return opc__yaml_plain(y, flow);
}

/* YAML 1.1 and 1.2 agree on these spellings. */
OPC__FN int opc__yaml_is_null(const opc__yaml *y) {
    if (y->quoted) return 0;
    if (y->len == 0 || (y->len == 1 && y->text[0] == '~')) return 1;
    return y->len == 4 && (memcmp(y->text, "null", 4) == 0 || memcmp(y->text, "Null", 4) == 0 ||
                           memcmp(y->text, "NULL", 4) == 0);
}

OPC__FN const char *opc__yaml_say(opc__yaml *y, int event) {
    return y->on(y->user, event, y->text, y->len);
}
OPC__FN const char *opc__yaml_value(opc__yaml *y) {
    return opc__yaml_say(y, opc__yaml_is_null(y) ? OPC__YAML_NULL : OPC__YAML_SCALAR);
}

/* White space, line ends and comments inside brackets. */
OPC__FN const char *opc__yaml_flow_space(opc__yaml *y) {
    for (;;) {
        if (!opc__yaml_rest(y)) return NULL;
        if (y->p == y->end) return "a bracket is not closed";
        opc__yaml_newline(y);
        if (opc__yaml_marker(y, "---") || opc__yaml_marker(y, "...")) {
            return "a bracket is not closed";
        }
    }
}

OPC__FN const char *opc__yaml_flow_list(opc__yaml *y) {
    const char *bad = y->on(y->user, OPC__YAML_LIST, "", 0);
    y->p++;
    while (bad == NULL) {
        bad = opc__yaml_flow_space(y);
        if (bad != NULL) return bad;
        if (*y->p == ']') {
            y->p++;
            return NULL;
        }
        bad = opc__yaml_scalar(y, 1);
        if (bad == NULL) bad = opc__yaml_say(y, OPC__YAML_ITEM);
        if (bad == NULL) bad = opc__yaml_flow_space(y);
        if (bad != NULL) return bad;
        if (*y->p == ',') {
            y->p++;
        } else if (*y->p != ']') {
            return "a comma or ] is expected";
        }
    }
    return bad;
}

OPC__FN const char *opc__yaml_flow_value(opc__yaml *y) {
    const char *bad = opc__yaml_flow_space(y);
    if (bad != NULL) return bad;
    if (*y->p == '[') return opc__yaml_flow_list(y);
    if (*y->p == '{') return "a mapping cannot stand here";
    if (*y->p == ',' || *y->p == '}') return y->on(y->user, OPC__YAML_NULL, "", 0);
    bad = opc__yaml_scalar(y, 1);
    return bad != NULL ? bad : opc__yaml_value(y);
}

/* What follows a key in braces, with its colon. *opened: it is a group, and its { was read. */
OPC__FN const char *opc__yaml_flow_pair(opc__yaml *y, int groups, int *opened) {
    const char *bad;
    opc__yaml_spaces(y); /* on a later line the colon could belong to the key's text */
    if (!opc__yaml_at(y, ':')) return y->on(y->user, OPC__YAML_NULL, "", 0);
    y->p++;
    bad = opc__yaml_flow_space(y);
    if (bad != NULL) return bad;
    if (!groups || *y->p != '{') return opc__yaml_flow_value(y);
    y->p++;
    *opened = 1;
    return y->on(y->user, OPC__YAML_GROUP, "", 0);
}

OPC__FN const char *opc__yaml_flow_map(opc__yaml *y, int groups) {
    int inner = 0; /* in a group of this mapping */
    y->p++;
    for (;;) {
        int opened = 0;
        const char *bad = opc__yaml_flow_space(y);
        if (bad != NULL) return bad;
        if (*y->p == '}') {
            y->p++;
            if (!inner) return NULL;
            inner = 0;
            bad = y->on(y->user, OPC__YAML_END, "", 0);
        } else {
            bad = opc__yaml_scalar(y, 1);
            if (bad == NULL) bad = opc__yaml_say(y, OPC__YAML_KEY);
            if (bad == NULL) bad = opc__yaml_flow_pair(y, groups && !inner, &opened);
            if (bad == NULL && opened) {
                inner = 1;
                continue;
            }
        }
        if (bad == NULL) bad = opc__yaml_flow_space(y);
        if (bad != NULL) return bad;
        if (*y->p == ',') {
            y->p++;
        } else if (*y->p != '}') {
            return "a comma or } is expected";
        }
    }
}

OPC__FN const char *opc__yaml_line_end(opc__yaml *y) {
    if (!opc__yaml_rest(y)) return "something stands behind the value";
    return opc__yaml_next_line(y);
}

OPC__FN const char *opc__yaml_block_list(opc__yaml *y, size_t indent) {
    const char *bad = y->on(y->user, OPC__YAML_LIST, "", 0);
    while (bad == NULL && y->p < y->end && opc__yaml_column(y) == indent && *y->p == '-' &&
           opc__yaml_gap(y, y->p + 1)) {
        y->p++;
        if (opc__yaml_rest(y)) {
            y->len = 0;
            y->quoted = 0;
            bad = opc__yaml_say(y, OPC__YAML_ITEM);
        } else {
            bad = opc__yaml_scalar(y, 0);
            if (bad == NULL) bad = opc__yaml_say(y, OPC__YAML_ITEM);
        }
        if (bad == NULL) bad = opc__yaml_line_end(y);
    }
    return bad;
}

/* A group in braces as the value in a block mapping. */
OPC__FN const char *opc__yaml_flow_group(opc__yaml *y) {
    const char *bad = y->on(y->user, OPC__YAML_GROUP, "", 0);
    if (bad == NULL) bad = opc__yaml_flow_map(y, 0);
    return bad != NULL ? bad : y->on(y->user, OPC__YAML_END, "", 0);
}

/* What follows "key:" in a block mapping. Leaves the cursor on the next line with content. */
OPC__FN const char *opc__yaml_block_value(opc__yaml *y, size_t indent, int groups) {
    const char *bad;
    if (opc__yaml_rest(y)) {
        bad = opc__yaml_next_line(y);
        if (bad != NULL) return bad;
        if (y->p < y->end && opc__yaml_column(y) >= indent && *y->p == '-' &&
            opc__yaml_gap(y, y->p + 1) && !opc__yaml_marker(y, "---")) {
            return opc__yaml_block_list(y, opc__yaml_column(y));
        }
        if (y->p == y->end || opc__yaml_column(y) <= indent) {
            return y->on(y->user, OPC__YAML_NULL, "", 0);
        }
    }
    if (*y->p == '[') {
        bad = opc__yaml_flow_list(y);
    } else if (*y->p == '{') {
        if (!groups) return "a mapping cannot stand here";
        bad = opc__yaml_flow_group(y);
    } else {
        bad = opc__yaml_scalar(y, 0);
        if (bad == NULL && opc__yaml_at(y, ':')) return "a mapping cannot stand here";
        if (bad == NULL) bad = opc__yaml_value(y);
    }
    if (bad == NULL) bad = opc__yaml_line_end(y);
    if (bad == NULL && y->p < y->end && opc__yaml_column(y) > indent) {
        return "the indentation does not fit";
    }
    return bad;
}

/* Is what follows "key:" a mapping on lines of its own, deeper than indent? Then the cursor goes to
   its first key; else it stays, and what is wrong there is found again by whoever reads it. */
OPC__FN int opc__yaml_block_opens(opc__yaml *y, size_t indent) {
    const char *p = y->p, *line_start = y->line_start, *key;
    uint32_t line = y->line;
    if (opc__yaml_rest(y) && opc__yaml_next_line(y) == NULL && y->p < y->end &&
        opc__yaml_column(y) > indent) {
        key = y->p;
        if (opc__yaml_scalar(y, 0) == NULL) {
            opc__yaml_spaces(y);
            if (opc__yaml_at(y, ':') && opc__yaml_gap(y, y->p + 1)) {
                y->p = key;
                return 1;
            }
        }
    }
    y->p = p;
    y->line_start = line_start;
    y->line = line;
    return 0;
}

OPC__FN const char *opc__yaml_block_map(opc__yaml *y) {
    size_t outer = opc__yaml_column(y), indent = outer; /* of the mapping; of the group in it */
    int inner = 0;
    while (y->p < y->end && !opc__yaml_marker(y, "---") && !opc__yaml_marker(y, "...")) {
        const char *bad = NULL;
        if (inner && opc__yaml_column(y) == outer) {
            bad = y->on(y->user, OPC__YAML_END, "", 0);
            if (bad != NULL) return bad;
            inner = 0;
            indent = outer;
        }
        if (opc__yaml_column(y) != indent) return "the indentation does not fit";
        bad = opc__yaml_scalar(y, 0);
        if (bad != NULL) return bad;
        opc__yaml_spaces(y);
        if (!opc__yaml_at(y, ':') || !opc__yaml_gap(y, y->p + 1)) {
            return "a mapping of key: value is expected";
        }
        y->p++;
        bad = opc__yaml_say(y, OPC__YAML_KEY);
        if (bad == NULL && y->groups && !inner && opc__yaml_block_opens(y, indent)) {
            bad = y->on(y->user, OPC__YAML_GROUP, "", 0);
            inner = 1;
            indent = opc__yaml_column(y);
        } else if (bad == NULL) {
            bad = opc__yaml_block_value(y, indent, y->groups && !inner);
        }
        if (bad != NULL) return bad;
    }
    return inner ? y->on(y->user, OPC__YAML_END, "", 0) : NULL;
}

OPC__FN const char *opc__yaml_document(opc__yaml *y) {
    const char *bad = opc__yaml_next_line(y);
    if (bad == NULL && opc__yaml_marker(y, "---")) {
        y->p += 3;
        opc__yaml_spaces(y);
        bad = opc__yaml_next_line(y);
    }
    if (bad != NULL || y->p == y->end) return bad;
    if (*y->p == '{') {
        bad = opc__yaml_flow_map(y, y->groups);
        if (bad == NULL) bad = opc__yaml_line_end(y);
    } else if (!opc__yaml_marker(y, "...")) {
        bad = opc__yaml_block_map(y);
    }
    if (bad == NULL && opc__yaml_marker(y, "...")) {
        y->p += 3;
        bad = opc__yaml_line_end(y);
    }
    if (bad == NULL && y->p < y->end) return "only one document, and nothing behind it";
    return bad;
}

/* How many bytes the character at p has, when no YAML text may hold it; else 0. p..p+n is UTF-8.
   YAML 1.2.2 5.1; and NEL, LS and PS, because they end a line in YAML 1.1 and not in 1.2. */
OPC__FN size_t opc__yaml_refused(const char *p, size_t n) {
    const uint8_t *b = (const uint8_t *)p;
    if (b[0] < 0x20 || b[0] == 0x7f) return b[0] != '\t' && b[0] != '\n' && b[0] != '\r';
    if (n >= 2 && b[0] == 0xc2 && b[1] < 0xa0) return 2;
    if (n < 3) return 0;
    if (b[0] == 0xe2 && b[1] == 0x80 && (b[2] == 0xa8 || b[2] == 0xa9)) return 3;
    if (b[0] == 0xef && b[1] == 0xbb && b[2] == 0xbf) return 3; /* byte order mark */
    return b[0] == 0xef && b[1] == 0xbf && b[2] >= 0xbe ? 3 : 0;
}

/* Reads the text and says what stands in it; NULL, or what is wrong in line y->line. A caller that
   wants groups, or the line and the quotes of what is said, has y of its own. */
OPC__FN const char *opc__yaml_read(opc__yaml *y, const char *text, size_t len) {
    y->line = 1;
    if (!opc__str_utf8_valid((const uint8_t *)text, len)) return "the text is not UTF-8";
    if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) { /* byte order mark */
        text += 3;
        len -= 3;
    }
    y->p = text;
    y->end = text + len;
    y->line_start = text;
    while (y->p < y->end && !opc__yaml_refused(y->p, (size_t)(y->end - y->p))) {
        if (opc__yaml_eol(y)) {
            opc__yaml_newline(y);
        } else {
            y->p++;
        }
    }
    if (y->p < y->end) return "a character YAML forbids";
    y->p = y->line_start = text;
    y->line = 1;
    return opc__yaml_document(y);
}

/* err gets the line. OPCOMMS_E_SYNTAX for everything that is wrong with the text. */
OPC__FN opcomms_err opc__yaml_parse(const char *text, size_t len, opc__yaml_fn on, void *user,
                                    opcomms_error *err) {
    opc__yaml y;
    const char *bad;
    memset(&y, 0, offsetof(opc__yaml, text));
    y.on = on;
    y.user = user;
    bad = opc__yaml_read(&y, text, len);
    return bad == NULL ? OPCOMMS_OK : opc__err_line(err, OPCOMMS_E_SYNTAX, y.line, bad);
}

/* >>der ==== L2 ==== DER: a bounded reader, and a writer that works from the end */

#define OPC__DER_INT 0x02u
#define OPC__DER_BITS 0x03u
#define OPC__DER_OCTETS 0x04u
#define OPC__DER_OID 0x06u
#define OPC__DER_SEQ 0x30u

/* The next element: its tag and content. X.690 10.1: definite and minimal lengths only. 0: damaged
   or at the end. */
OPC__FN int opc__der_next(opc__rd *r, unsigned *tag, opc__rd *content) {
    size_t len = 0;
    unsigned first;
    const uint8_t *p;
    *tag = opc__rd_u8(r);
    first = opc__rd_u8(r);
    if (r->bad || (*tag & 0x1fu) == 0x1fu) return 0;
    if (first < 0x80u) {
        len = first;
    } else {
        unsigned n = first & 0x7fu, i;
        if (n == 0 || n > 3) return 0;
        for (i = 0; i < n; i++) len = (len << 8) | opc__rd_u8(r);
        if (r->bad || len < 0x80u || (n > 1 && len < ((size_t)1 << (8 * (n - 1))))) return 0;
    }
    p = opc__rd_bytes(r, len);
    if (p == NULL) return 0;
    opc__rd_init(content, p, len);
    return 1;
}

OPC__FN int opc__der_expect(opc__rd *r, unsigned tag, opc__rd *content) {
    unsigned got = 0;
    return opc__der_next(r, &got, content) && got == tag;
}

/* A non-negative INTEGER without its leading zeros. */
OPC__FN int opc__der_uint(opc__rd *r, const uint8_t **p, size_t *len) {
    opc__rd c;
    if (!opc__der_expect(r, OPC__DER_INT, &c) || opc__rd_left(&c) == 0) return 0;
    if (c.p[0] & 0x80u) return 0;
    while (opc__rd_left(&c) > 0 && c.p[0] == 0) c.p++;
    *p = c.p;
    *len = opc__rd_left(&c);
    return 1;
}

OPC__FN int opc__der_is(const opc__rd *c, const uint8_t *bytes, size_t len) {
    return opc__rd_left(c) == len && memcmp(c->p, bytes, len) == 0;
}

/* Prepends, so that every length is known when it is written. */
typedef struct opc__derw {
    uint8_t *base;
    uint8_t *p;
    int full;
} opc__derw;

OPC__FN void opc__derw_init(opc__derw *w, uint8_t *buf, size_t cap) {
    w->base = buf;
    w->p = buf + cap;
    w->full = 0;
}
OPC__FN void opc__derw_bytes(opc__derw *w, const void *s, size_t n) {
    if (w->full || n > (size_t)(w->p - w->base)) {
        w->full = 1;
        return;
    }
    w->p -= n;
    if (n > 0) memcpy(w->p, s, n);
}
OPC__FN void opc__derw_u8(opc__derw *w, unsigned v) {
    uint8_t b = (uint8_t)v;
    opc__derw_bytes(w, &b, 1);
}
/* Tag and length before everything written since `end`. */
OPC__FN void opc__derw_wrap(opc__derw *w, unsigned tag, const uint8_t *end) {
    size_t len = (size_t)(end - w->p);
    if (len < 0x80u) {
        opc__derw_u8(w, (unsigned)len);
    } else {
        unsigned n = 0;
        while (len > 0) {
            opc__derw_u8(w, (unsigned)(len & 0xffu));
            len >>= 8;
            n++;
        }
        opc__derw_u8(w, 0x80u | n);
    }
    opc__derw_u8(w, tag);
}
OPC__FN void opc__derw_uint(opc__derw *w, const uint8_t *p, size_t n) {
    const uint8_t *end = w->p;
    while (n > 0 && p[0] == 0) {
        p++;
        n--;
    }
    opc__derw_bytes(w, p, n);
    if (n == 0 || (p[0] & 0x80u)) opc__derw_u8(w, 0);
    opc__derw_wrap(w, OPC__DER_INT, end);
}

/* >>key ==== L2 ==== private keys: PEM in and out, public key hash, generation */

#ifdef __cplusplus
}
#endif
#include <bearssl.h>
#ifdef __cplusplus
extern "C" {
#endif

#define OPC__KEY_RSA 1
#define OPC__KEY_EC 2
#define OPC__KEY_DER_MAX 3072u /* PKCS#8 of RSA-4096 is 2 375 bytes */
#define OPC__KEY_FILE_MAX 65536u
#define OPC__KEY_PEM_MAX 4096u /* as we write it: RSA-4096 is 3 300 bytes, encrypted 3 500 */
#define OPC__KEY_SPKI_MAX 600u

static const uint8_t OPC__OID_RSA[9] = {0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01};
static const uint8_t OPC__OID_EC[7] = {0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01};
static const uint8_t OPC__OID_P256[8] = {0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};
static const uint8_t OPC__OID_P384[5] = {0x2b, 0x81, 0x04, 0x00, 0x22};
static const uint8_t OPC__OID_PKCS5[8] = {0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05};

/* A private key with its public part. The pointers inside point into `store`: not copyable. */
typedef struct opc__key {
    int kind;
    unsigned bits;
    br_rsa_private_key rsa;
    br_ec_private_key ec;
    uint8_t n[512];
    size_t n_len;
    uint8_t e[8];
    size_t e_len;
    uint8_t q[97]; /* uncompressed point */
    size_t q_len;
    uint8_t store[5 * 256];
} opc__key;

OPC__FN void opc__key_wipe(opc__key *k) { opc__mem_wipe(k, sizeof *k); }

/* SubjectPublicKeyInfo (RFC 5280 4.1.2.7; RFC 3279 2.3.1: NULL parameters for RSA). */
OPC__FN size_t opc__key_spki_write(uint8_t *out, size_t cap, const uint8_t *n, size_t n_len,
                                   const uint8_t *e, size_t e_len, int curve, const uint8_t *q,
                                   size_t q_len) {
    uint8_t buf[OPC__KEY_SPKI_MAX];
    opc__derw w;
    const uint8_t *end, *mark;
    size_t len;
    opc__derw_init(&w, buf, sizeof buf);
    end = w.p;
    if (curve == 0) {
        opc__derw_uint(&w, e, e_len);
        opc__derw_uint(&w, n, n_len);
        opc__derw_wrap(&w, OPC__DER_SEQ, end);
    } else {
        opc__derw_bytes(&w, q, q_len);
    }
    opc__derw_u8(&w, 0); /* no unused bits */
    opc__derw_wrap(&w, OPC__DER_BITS, end);
    mark = w.p;
    if (curve == 0) {
        opc__derw_wrap(&w, 0x05, w.p);
    } else {
        const uint8_t *oid_end = w.p;
        if (curve == BR_EC_secp256r1) {
            opc__derw_bytes(&w, OPC__OID_P256, sizeof OPC__OID_P256);
        } else {
            opc__derw_bytes(&w, OPC__OID_P384, sizeof OPC__OID_P384);
        }
        opc__derw_wrap(&w, OPC__DER_OID, oid_end);
    }
    {
        const uint8_t *oid_end = w.p;
        if (curve == 0) {
            opc__derw_bytes(&w, OPC__OID_RSA, sizeof OPC__OID_RSA);
        } else {
            opc__derw_bytes(&w, OPC__OID_EC, sizeof OPC__OID_EC);
        }
        opc__derw_wrap(&w, OPC__DER_OID, oid_end);
    }
    opc__derw_wrap(&w, OPC__DER_SEQ, mark);
    opc__derw_wrap(&w, OPC__DER_SEQ, end);
    len = (size_t)(end - w.p);
    if (w.full || len > cap) return 0;
    memcpy(out, w.p, len);
    return len;
}

OPC__FN size_t opc__key_spki(const opc__key *k, uint8_t *out, size_t cap) {
    return opc__key_spki_write(out, cap, k->n, k->n_len, k->e, k->e_len,
                               k->kind == OPC__KEY_EC ? k->ec.curve : 0, k->q, k->q_len);
}

OPC__FN void opc__key_sha256(const void *p, size_t n, uint8_t hash[32]) {
    br_sha256_context sha;
    br_sha256_init(&sha);
    br_sha256_update(&sha, p, n);
    br_sha256_out(&sha, hash);
}

OPC__FN void opc__key_hash(const opc__key *k, uint8_t hash[32]) {
    uint8_t spki[OPC__KEY_SPKI_MAX];
    size_t len = opc__key_spki(k, spki, sizeof spki);
    OPCOMMS_ASSERT(len > 0);
    opc__key_sha256(spki, len, hash);
}

OPC__FN unsigned opc__key_bits(const uint8_t *p, size_t n) {
    unsigned bits, top;
    while (n > 0 && p[0] == 0) {
        p++;
        n--;
    }
    if (n == 0) return 0;
    bits = (unsigned)n * 8u;
    for (top = p[0]; !(top & 0x80u); top <<= 1) bits--;
    return bits;
}

/* The hash of a key as BearSSL decoded it from a certificate. The sizes are those of our own keys:
   BearSSL's verifier would take a 1024-bit key, which can be broken, for an identity. */
OPC__FN opcomms_err opc__key_spki_hash_x509(const br_x509_pkey *pk, uint8_t hash[32]) {
    uint8_t spki[OPC__KEY_SPKI_MAX];
    size_t len;
    if (pk->key_type == BR_KEYTYPE_RSA) {
        unsigned bits = opc__key_bits(pk->key.rsa.n, pk->key.rsa.nlen);
        if (bits < 2048 || bits > 4096) return OPCOMMS_E_KEY_TYPE;
        len = opc__key_spki_write(spki, sizeof spki, pk->key.rsa.n, pk->key.rsa.nlen,
                                  pk->key.rsa.e, pk->key.rsa.elen, 0, NULL, 0);
    } else if (pk->key_type == BR_KEYTYPE_EC && (pk->key.ec.curve == BR_EC_secp256r1 ||
                                                 pk->key.ec.curve == BR_EC_secp384r1)) {
        len = opc__key_spki_write(spki, sizeof spki, NULL, 0, NULL, 0, pk->key.ec.curve,
                                  pk->key.ec.q, pk->key.ec.qlen);
    } else {
        return OPCOMMS_E_KEY_TYPE;
    }
    if (len == 0) return OPCOMMS_E_KEY_TYPE;
    opc__key_sha256(spki, len, hash);
    return OPCOMMS_OK;
}

/* ---- DER to key ---- */

/* p * q == n ? Lengths at most 256 each. */
OPC__FN int opc__key_product(const uint8_t *p, size_t p_len, const uint8_t *q, size_t q_len,
                             const uint8_t *n, size_t n_len) {
    uint8_t r[512];
    size_t i, j;
    uint8_t diff = 0;
    OPCOMMS_ASSERT(p_len <= 256);
    OPCOMMS_ASSERT(q_len <= 256);
    memset(r, 0, sizeof r);
    for (i = 0; i < p_len; i++) {
        uint32_t carry = 0;
        for (j = 0; j < q_len; j++) {
            uint8_t *at = &r[sizeof r - 1 - i - j];
            uint32_t v = (uint32_t)p[p_len - 1 - i] * q[q_len - 1 - j] + *at + carry;
            *at = (uint8_t)v;
            carry = v >> 8;
        }
        if (i + j < sizeof r) r[sizeof r - 1 - i - j] = (uint8_t)carry;
    }
    if (n_len > sizeof r) return 0;
    for (i = 0; i < sizeof r - n_len; i++) diff |= r[i];
    for (i = 0; i < n_len; i++) diff |= (uint8_t)(r[sizeof r - n_len + i] ^ n[i]);
    opc__mem_wipe(r, sizeof r);
    return diff == 0;
}

/* A signature made with the private part must verify with the public part: catches damage in any
   of the five private numbers, and keeps a faulty signature from ever leaving (it would reveal a
   factor). */
OPC__FN int opc__key_rsa_works(const opc__key *k) {
    static const uint8_t digest[32] = {1, 2, 3};
    uint8_t sig[512], back[32];
    br_rsa_public_key pub;
    uint8_t n[512], e[8];
    memcpy(n, k->n, k->n_len);
    memcpy(e, k->e, k->e_len);
    pub.n = n;
    pub.nlen = k->n_len;
    pub.e = e;
    pub.elen = k->e_len;
    if (!br_rsa_pkcs1_sign_get_default()(BR_HASH_OID_SHA256, digest, 32, &k->rsa, sig)) return 0;
    if (!br_rsa_pkcs1_vrfy_get_default()(sig, k->n_len, BR_HASH_OID_SHA256, 32, &pub, back)) {
        return 0;
    }
    return memcmp(back, digest, 32) == 0;
}

OPC__FN opcomms_err opc__key_take_rsa(opc__key *k, const uint8_t *const part[8],
                                      const size_t len[8]) {
    /* n e d p q dp dq iq */
    uint64_t e = 0;
    size_t i, at = 0;
    unsigned char **to[5];
    size_t *to_len[5];
    k->bits = opc__key_bits(part[0], len[0]);
    if (len[0] > 512 || k->bits < 2048 || k->bits > 4096) return OPCOMMS_E_KEY_TYPE;
    if (len[1] == 0 || len[1] > 5) return OPCOMMS_E_KEY_TYPE;
    for (i = 0; i < len[1]; i++) e = (e << 8) | part[1][i];
    if (e < 65537u || !(e & 1u) || e > 0x1ffffffffu) return OPCOMMS_E_KEY_TYPE;
    for (i = 3; i < 8; i++) {
        if (len[i] == 0 || len[i] > 256) return OPCOMMS_E_KEY_DAMAGED;
    }
    if (!(part[0][len[0] - 1] & 1u) || !(part[3][len[3] - 1] & 1u) || !(part[4][len[4] - 1] & 1u) ||
        !opc__key_product(part[3], len[3], part[4], len[4], part[0], len[0])) {
        return OPCOMMS_E_KEY_DAMAGED;
    }
    if (len[5] > len[3] || len[6] > len[4] || len[7] > len[3]) return OPCOMMS_E_KEY_DAMAGED;
    memcpy(k->n, part[0], len[0]);
    k->n_len = len[0];
    memcpy(k->e, part[1], len[1]);
    k->e_len = len[1];
    to[0] = &k->rsa.p;
    to[1] = &k->rsa.q;
    to[2] = &k->rsa.dp;
    to[3] = &k->rsa.dq;
    to[4] = &k->rsa.iq;
    to_len[0] = &k->rsa.plen;
    to_len[1] = &k->rsa.qlen;
    to_len[2] = &k->rsa.dplen;
    to_len[3] = &k->rsa.dqlen;
    to_len[4] = &k->rsa.iqlen;
    for (i = 0; i < 5; i++) {
        memcpy(k->store + at, part[3 + i], len[3 + i]);
        *to[i] = k->store + at;
        *to_len[i] = len[3 + i];
        at += 256;
    }
    k->rsa.n_bitlen = k->bits;
    k->kind = OPC__KEY_RSA;
    return opc__key_rsa_works(k) ? OPCOMMS_OK : OPCOMMS_E_KEY_DAMAGED;
}

/* RFC 8017 A.1.2, the content of the SEQUENCE after its version. */
OPC__FN opcomms_err opc__key_pkcs1(opc__key *k, opc__rd *r) {
    const uint8_t *part[8];
    size_t len[8], i;
    for (i = 0; i < 8; i++) {
        if (!opc__der_uint(r, &part[i], &len[i])) return OPCOMMS_E_KEY_DAMAGED;
    }
    if (opc__rd_left(r) != 0) return OPCOMMS_E_KEY_DAMAGED;
    return opc__key_take_rsa(k, part, len);
}

OPC__FN int opc__key_curve(const opc__rd *oid) {
    if (opc__der_is(oid, OPC__OID_P256, sizeof OPC__OID_P256)) return BR_EC_secp256r1;
    if (opc__der_is(oid, OPC__OID_P384, sizeof OPC__OID_P384)) return BR_EC_secp384r1;
    return 0;
}

OPC__FN opcomms_err opc__key_take_ec(opc__key *k, int curve, const uint8_t *x, size_t len) {
    size_t size = curve == BR_EC_secp256r1 ? 32 : 48, order_len = 0;
    const br_ec_impl *impl = br_ec_get_default();
    const unsigned char *order = impl->order(curve, &order_len);
    br_ec_public_key pub;
    uint8_t any = 0;
    size_t i;
    while (len > size && x[0] == 0) {
        x++;
        len--;
    }
    if (len > size || order_len != size) return OPCOMMS_E_KEY_DAMAGED;
    memset(k->store, 0, size);
    if (len > 0) memcpy(k->store + size - len, x, len);
    for (i = 0; i < size; i++) any |= k->store[i];
    if (any == 0 || memcmp(k->store, order, size) >= 0) return OPCOMMS_E_KEY_DAMAGED;
    k->ec.curve = curve;
    k->ec.x = k->store;
    k->ec.xlen = size;
    k->q_len = br_ec_compute_pub(impl, &pub, k->q, &k->ec);
    if (k->q_len != 2 * size + 1) return OPCOMMS_E_KEY_DAMAGED;
    k->kind = OPC__KEY_EC;
    k->bits = (unsigned)size * 8u;
    return OPCOMMS_OK;
}

/* RFC 5915, the content of the SEQUENCE after its version. `curve` 0: must be given inside. */
OPC__FN opcomms_err opc__key_sec1(opc__key *k, opc__rd *r, int curve) {
    opc__rd x, field, inner;
    unsigned tag = 0;
    const uint8_t *point = NULL;
    size_t point_len = 0;
    opcomms_err rc;
    if (!opc__der_expect(r, OPC__DER_OCTETS, &x)) return OPCOMMS_E_KEY_DAMAGED;
    while (opc__rd_left(r) > 0) {
        if (!opc__der_next(r, &tag, &field)) return OPCOMMS_E_KEY_DAMAGED;
        if (tag == 0xa0u) {
            int named;
            if (!opc__der_expect(&field, OPC__DER_OID, &inner)) return OPCOMMS_E_KEY_TYPE;
            named = opc__key_curve(&inner);
            if (named == 0) return OPCOMMS_E_KEY_TYPE;
            if (curve != 0 && named != curve) return OPCOMMS_E_KEY_DAMAGED;
            curve = named;
        } else if (tag == 0xa1u) {
            if (!opc__der_expect(&field, OPC__DER_BITS, &inner) || opc__rd_u8(&inner) != 0 ||
                inner.bad) {
                return OPCOMMS_E_KEY_DAMAGED;
            }
            point = inner.p;
            point_len = opc__rd_left(&inner);
        } else {
            return OPCOMMS_E_KEY_DAMAGED;
        }
    }
    if (curve == 0) return OPCOMMS_E_KEY_TYPE;
    rc = opc__key_take_ec(k, curve, x.p, opc__rd_left(&x));
    if (rc == OPCOMMS_OK && point != NULL &&
        (point_len != k->q_len || memcmp(point, k->q, point_len) != 0)) {
        return OPCOMMS_E_KEY_DAMAGED;
    }
    return rc;
}

/* RFC 5958 2, after the version: algorithm, key, attributes. */
OPC__FN opcomms_err opc__key_pkcs8(opc__key *k, opc__rd *alg, opc__rd *r) {
    opc__rd oid, key, seq, version, param;
    if (!opc__der_expect(alg, OPC__DER_OID, &oid)) return OPCOMMS_E_KEY_DAMAGED;
    if (!opc__der_expect(r, OPC__DER_OCTETS, &key)) return OPCOMMS_E_KEY_DAMAGED;
    if (opc__der_is(&oid, OPC__OID_RSA, sizeof OPC__OID_RSA)) {
        if (!opc__der_expect(&key, OPC__DER_SEQ, &seq) ||
            !opc__der_expect(&seq, OPC__DER_INT, &version)) {
            return OPCOMMS_E_KEY_DAMAGED;
        }
        return opc__key_pkcs1(k, &seq);
    }
    if (opc__der_is(&oid, OPC__OID_EC, sizeof OPC__OID_EC)) {
        int curve;
        if (!opc__der_expect(alg, OPC__DER_OID, &param)) return OPCOMMS_E_KEY_DAMAGED;
        curve = opc__key_curve(&param);
        if (curve == 0) return OPCOMMS_E_KEY_TYPE;
        if (!opc__der_expect(&key, OPC__DER_SEQ, &seq) ||
            !opc__der_expect(&seq, OPC__DER_INT, &version)) {
            return OPCOMMS_E_KEY_DAMAGED;
        }
        return opc__key_sec1(k, &seq, curve);
    }
    return OPCOMMS_E_KEY_TYPE;
}

OPC__FN opcomms_err opc__key_from_der(opc__key *k, const uint8_t *der, size_t len) {
    opc__rd r, seq, el;
    unsigned tag = 0, version;
    opc__rd_init(&r, der, len);
    if (!opc__der_expect(&r, OPC__DER_SEQ, &seq)) return OPCOMMS_E_KEY_DAMAGED;
    if (!opc__der_next(&seq, &tag, &el)) return OPCOMMS_E_KEY_DAMAGED;
    if (tag == OPC__DER_SEQ) { /* EncryptedPrivateKeyInfo, or some other thing */
        opc__rd oid;
        if (opc__der_expect(&el, OPC__DER_OID, &oid) && opc__rd_left(&oid) >= 8 &&
            memcmp(oid.p, OPC__OID_PKCS5, 8) == 0) {
            return OPCOMMS_E_ENCRYPTED;
        }
        return OPCOMMS_E_KEY_TYPE;
    }
    if (tag != OPC__DER_INT || opc__rd_left(&el) != 1) return OPCOMMS_E_KEY_DAMAGED;
    version = el.p[0];
    if (opc__rd_left(&seq) == 0) return OPCOMMS_E_KEY_DAMAGED;
    switch (seq.p[0]) {
    case OPC__DER_SEQ:
        if (!opc__der_expect(&seq, OPC__DER_SEQ, &el)) return OPCOMMS_E_KEY_DAMAGED;
        return opc__key_pkcs8(k, &el, &seq);
    case OPC__DER_INT: return version == 0 ? opc__key_pkcs1(k, &seq) : OPCOMMS_E_KEY_TYPE;
    case OPC__DER_OCTETS: return version == 1 ? opc__key_sec1(k, &seq, 0) : OPCOMMS_E_KEY_DAMAGED;
    default: return OPCOMMS_E_KEY_TYPE;
    }
}

/* ---- PEM ---- */

OPC__FN int opc__pem_value(int c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    if (c == '+') return 62;
    if (c == '/') return 63;
    return -1;
}

OPC__FN const char *opc__pem_find(const char *p, const char *end, const char *word) {
    size_t n = strlen(word);
    while ((size_t)(end - p) >= n) {
        if (memcmp(p, word, n) == 0) return p;
        p++;
    }
    return NULL;
}

typedef struct opc__base64 {
    uint32_t bits;
    unsigned count;
    unsigned pads;
    uint8_t *out;
    size_t cap;
    size_t len;
} opc__base64;

OPC__FN opcomms_err opc__base64_char(opc__base64 *b, char c) {
    int v = opc__pem_value((unsigned char)c);
    if (c == '=') {
        b->pads++;
        return b->pads <= 2 ? OPCOMMS_OK : OPCOMMS_E_KEY_DAMAGED;
    }
    if (v < 0 || b->pads > 0) return OPCOMMS_E_KEY_DAMAGED;
    b->bits = (b->bits << 6) | (uint32_t)v;
    b->count += 6;
    if (b->count >= 8) {
        b->count -= 8;
        if (b->len == b->cap) return OPCOMMS_E_KEY_TYPE; /* larger than any key we take */
        b->out[b->len++] = (uint8_t)(b->bits >> b->count);
    }
    return OPCOMMS_OK;
}

#define OPC__PEM_PLAIN 0
#define OPC__PEM_SEALED 1 /* RFC 7468 11: the DER is an EncryptedPrivateKeyInfo */
#define OPC__PEM_OLD 2    /* RFC 1421 headers tell how; the DER is not decoded */

/* The first PEM block, whatever its label, to DER. Tolerates what the reference does: text around
   the block, CRLF, indentation, one long line, PEM headers, and a Python-style b'...' wrapper in
   which line ends are the two characters \n. *form tells what label and headers say of encryption,
   also on failure. */
OPC__FN opcomms_err opc__pem_block(const char *pem, size_t len, uint8_t *der, size_t cap,
                                   size_t *der_len, int *form) {
    const char *end = pem + len, *p = opc__pem_find(pem, end, "-----BEGIN ");
    const char *label, *stop;
    opc__base64 b;
    *form = OPC__PEM_PLAIN;
    if (p == NULL) return OPCOMMS_E_NO_PEM;
    /* `openssl ecparam -genkey` writes the curve as a block of its own in front of the key. */
    if (opc__pem_find(p, end, "-----BEGIN EC PARAMETERS-----") == p) {
        p = opc__pem_find(p + 11, end, "-----BEGIN ");
        if (p == NULL) return OPCOMMS_E_NO_PEM;
    }
    label = p + 11;
    p = opc__pem_find(label, end, "-----");
    if (p == NULL) return OPCOMMS_E_NO_PEM;
    if (opc__pem_find(label, p, "ENCRYPTED") != NULL) *form = OPC__PEM_SEALED;
    p += 5;
    stop = opc__pem_find(p, end, "-----END ");
    if (stop == NULL) return OPCOMMS_E_NO_PEM;
    memset(&b, 0, sizeof b);
    b.out = der;
    b.cap = cap;
    while (p < stop) {
        const char *eol = p, *q;
        while (eol < stop && *eol != '\n' && *eol != '\r' &&
               !(*eol == '\\' && eol + 1 < stop && (eol[1] == 'n' || eol[1] == 'r'))) {
            eol++;
        }
        if (opc__pem_find(p, eol, ":") != NULL) { /* RFC 1421 header line */
            if (opc__pem_find(p, eol, "ENCRYPTED") != NULL) {
                *form = OPC__PEM_OLD;
                return OPCOMMS_E_ENCRYPTED;
            }
        } else {
            for (q = p; q < eol; q++) {
                opcomms_err rc = OPCOMMS_OK;
                if (*q != ' ' && *q != '\t') rc = opc__base64_char(&b, *q);
                if (rc != OPCOMMS_OK) return rc;
            }
        }
        p = eol;
        if (p < stop) p += *p == '\\' ? 2 : 1;
    }
    if (b.len == 0 || (b.bits & ((1u << b.count) - 1u)) != 0) return OPCOMMS_E_KEY_DAMAGED;
    *der_len = b.len;
    return OPCOMMS_OK;
}

/* The same where no password is at hand. */
OPC__FN opcomms_err opc__pem_decode(const char *pem, size_t len, uint8_t *der, size_t cap,
                                    size_t *der_len) {
    int form = OPC__PEM_PLAIN;
    opcomms_err rc = opc__pem_block(pem, len, der, cap, der_len, &form);
    return form == OPC__PEM_PLAIN ? rc : OPCOMMS_E_ENCRYPTED;
}

OPC__FN void opc__pem_encode(opc__text *t, const char *label, const uint8_t *der, size_t len) {
    static const char abc[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t i;
    opc__text_str(t, "-----BEGIN ");
    opc__text_str(t, label);
    opc__text_str(t, "-----\n");
    for (i = 0; i < len; i += 3) {
        size_t n = len - i < 3 ? len - i : 3;
        uint32_t v = (uint32_t)der[i] << 16;
        char four[4];
        if (n > 1) v |= (uint32_t)der[i + 1] << 8;
        if (n > 2) v |= der[i + 2];
        four[0] = abc[v >> 18];
        four[1] = abc[(v >> 12) & 63u];
        four[2] = n > 1 ? abc[(v >> 6) & 63u] : '=';
        four[3] = n > 2 ? abc[v & 63u] : '=';
        opc__text_bytes(t, four, 4);
        if (i % 48 == 45 || i + 3 >= len) opc__text_str(t, "\n");
    }
    opc__text_str(t, "-----END ");
    opc__text_str(t, label);
    opc__text_str(t, "-----\n");
}

OPC__FN opcomms_err opc__key_from_pem(opc__key *k, const char *pem, size_t len,
                                      opcomms_error *err) {
    uint8_t der[OPC__KEY_DER_MAX];
    size_t der_len = 0;
    opcomms_err rc;
    memset(k, 0, sizeof *k);
    rc = opc__pem_decode(pem, len, der, sizeof der, &der_len);
    if (rc == OPCOMMS_OK) rc = opc__key_from_der(k, der, der_len);
    opc__mem_wipe(der, sizeof der);
    if (rc == OPCOMMS_OK) return rc;
    opc__key_wipe(k);
    return opc__err_set(err, rc, 0, "private key");
}

OPC__FN opcomms_err opc__key_load_file(const opcomms_platform *plat, opc__mem *mem,
                                       const char *path, opc__key *k, opcomms_error *err) {
    char *text = NULL;
    size_t len = 0;
    opcomms_err rc = opc__plat_read_file(plat, mem, path, OPC__KEY_FILE_MAX, &text, &len, err);
    if (rc != OPCOMMS_OK) return rc;
    rc = opc__key_from_pem(k, text, len, err);
    opc__mem_free_wiped(mem, text, len + 1);
    return rc;
}

OPC__FN void opc__key_default_mem(opc__mem *mem) {
    memset(mem, 0, sizeof *mem);
    mem->alloc = opc__plat_malloc;
    mem->release = opc__plat_free;
}

/* The CA key that every copy of the Rust system carries in its source. It is public: a signature
   by it proves nothing; it exists so that their verifier accepts our certificate. */
static const uint8_t OPC__KEY_CA_N[256] = {
    0xe1, 0xce, 0x46, 0xc5, 0xca, 0x7b, 0x30, 0x7f, 0x2b, 0x3f, 0x54, 0xd6, 0xcc, 0xe2, 0x1c, 0xd8,
    0x34, 0xa0, 0x9d, 0x02, 0xec, 0x58, 0x23, 0xf8, 0xf2, 0xb0, 0xe3, 0xe4, 0x44, 0x71, 0xa1, 0x94,
    0x97, 0xbe, 0xef, 0x51, 0x04, 0xf4, 0x5d, 0x82, 0xa4, 0x06, 0x67, 0x8d, 0xeb, 0xc1, 0xb1, 0x45,
    0xb1, 0x8b, 0x7f, 0x8b, 0x6a, 0xd7, 0xcc, 0x66, 0x3c, 0x22, 0x53, 0x3f, 0xe5, 0xde, 0x20, 0xba,
    0xa3, 0x0f, 0x03, 0xb1, 0xaa, 0xf4, 0x04, 0xee, 0x91, 0x99, 0x64, 0x11, 0xf1, 0x47, 0xff, 0xd6,
    0xcc, 0x7e, 0x58, 0xd8, 0xc1, 0x93, 0x6c, 0x28, 0x21, 0x23, 0xdb, 0xeb, 0x4a, 0x17, 0x6d, 0x76,
    0x23, 0xf0, 0x05, 0x54, 0xa9, 0x85, 0x14, 0x4a, 0x8f, 0xd0, 0x44, 0x5e, 0x64, 0xb8, 0x64, 0xfb,
    0x76, 0xc3, 0x2f, 0x50, 0x0c, 0x7c, 0x22, 0xb9, 0xfd, 0xdf, 0x0e, 0x00, 0xe5, 0x55, 0xf1, 0xf8,
    0x52, 0xe7, 0xde, 0xbd, 0xfc, 0x4f, 0x29, 0xaf, 0xee, 0xa3, 0x8c, 0x4f, 0x97, 0x0e, 0xd7, 0x1a,
    0xcd, 0x4a, 0xdb, 0x25, 0xb8, 0x10, 0xf5, 0x45, 0xd3, 0xe3, 0xcf, 0xe0, 0x7a, 0x6f, 0xee, 0xf0,
    0xa0, 0x02, 0xaa, 0x92, 0xb3, 0x45, 0x47, 0xe6, 0x47, 0xd0, 0x75, 0x14, 0x2a, 0x57, 0x40, 0xf8,
    0x0f, 0xa9, 0x18, 0x49, 0x50, 0x2c, 0xe0, 0xf2, 0x2c, 0x1e, 0xce, 0xc3, 0x11, 0xe0, 0x2a, 0xd1,
    0x2c, 0x15, 0xdc, 0xa2, 0x88, 0x3b, 0x8a, 0x5b, 0x69, 0x8f, 0xb2, 0x4d, 0x9d, 0xb1, 0xa6, 0xfd,
    0x1c, 0x23, 0x5d, 0xa3, 0xd7, 0x15, 0x88, 0x0f, 0x54, 0x6d, 0xec, 0xa4, 0x0d, 0x7a, 0xbb, 0x87,
    0x4f, 0xfb, 0x81, 0x88, 0x3d, 0x5c, 0x11, 0xfc, 0x2e, 0xaa, 0x97, 0x62, 0x94, 0xa4, 0xfc, 0xb1,
    0x3a, 0x4f, 0xc9, 0x35, 0x45, 0x56, 0xbd, 0x10, 0x1c, 0x55, 0x46, 0x96, 0x2a, 0x96, 0xf1, 0x4f,
};
static const uint8_t OPC__KEY_CA_P[128] = {
    0xfb, 0x15, 0x37, 0xb7, 0x54, 0xfa, 0xec, 0x8b, 0xa7, 0xa3, 0xa3, 0xb7, 0x5b, 0xf5, 0x2c, 0x13,
    0x52, 0x3b, 0x13, 0x40, 0xaa, 0x31, 0xad, 0xfa, 0x0d, 0x73, 0x4c, 0x4f, 0xcc, 0x61, 0xb0, 0x2b,
    0x2c, 0x80, 0xac, 0x63, 0x3e, 0xf8, 0xd4, 0x08, 0xd4, 0x26, 0x6e, 0x41, 0x00, 0xd7, 0x56, 0x86,
    0x25, 0xf8, 0x90, 0xb5, 0x24, 0xe7, 0x13, 0x2e, 0x38, 0xd6, 0xfd, 0x36, 0x2e, 0xc1, 0x51, 0x80,
    0xaf, 0xad, 0xdb, 0x8e, 0xd6, 0x23, 0x53, 0x47, 0xbc, 0x35, 0x9c, 0xee, 0x9b, 0x79, 0xc8, 0x67,
    0xba, 0xe9, 0xc8, 0x72, 0x69, 0x9d, 0xb0, 0x8b, 0x05, 0xce, 0xbb, 0xf0, 0xa3, 0x42, 0xbd, 0xb9,
    0x43, 0xe2, 0xef, 0xd5, 0x97, 0x56, 0xf1, 0xff, 0xdb, 0xd1, 0x88, 0x24, 0xf1, 0xf5, 0x2d, 0x2b,
    0xfc, 0xb2, 0x79, 0xe0, 0x9a, 0xf7, 0x3a, 0x1c, 0x7d, 0x7d, 0xe6, 0x04, 0x45, 0xce, 0x0a, 0xfd,
};
static const uint8_t OPC__KEY_CA_Q[128] = {
    0xe6, 0x3a, 0x55, 0x8d, 0x1f, 0x01, 0x65, 0x0b, 0x6a, 0x64, 0x60, 0x8f, 0xf4, 0x6e, 0x25, 0xd6,
    0xc9, 0xb4, 0x19, 0x5a, 0xfc, 0xfe, 0x0b, 0x9c, 0x77, 0x24, 0xee, 0xad, 0x7f, 0x4c, 0xa4, 0x46,
    0x4d, 0xac, 0x04, 0x47, 0x29, 0xd3, 0xb2, 0x4c, 0x84, 0x9b, 0x04, 0xfa, 0xbe, 0x01, 0xfa, 0x51,
    0xcd, 0x49, 0x66, 0xa5, 0x91, 0x7e, 0x34, 0xf4, 0x59, 0xfa, 0xc7, 0x67, 0x21, 0xff, 0xab, 0x4b,
    0x3f, 0x45, 0xfe, 0xbe, 0x23, 0x39, 0x9e, 0xbf, 0xb6, 0x46, 0x91, 0x87, 0x2e, 0x95, 0x01, 0x7a,
    0xae, 0x3e, 0x44, 0xa3, 0x26, 0x51, 0x2f, 0xcd, 0x81, 0x8d, 0x83, 0xa1, 0x15, 0x75, 0x0d, 0x19,
    0xdf, 0x93, 0x85, 0x6d, 0xd0, 0x16, 0x72, 0xe5, 0x5a, 0x1c, 0xe0, 0xe5, 0x50, 0xcf, 0x4c, 0xe8,
    0x87, 0x01, 0x73, 0x62, 0x16, 0x3a, 0xd1, 0x38, 0x51, 0x57, 0x75, 0x09, 0xf4, 0x76, 0xdd, 0x3b,
};
static const uint8_t OPC__KEY_CA_DP[128] = {
    0x9c, 0x05, 0x2f, 0x3e, 0x08, 0xdc, 0x73, 0xa8, 0xc4, 0x5e, 0xf7, 0x18, 0xb5, 0x57, 0xc0, 0x2f,
    0xb1, 0x65, 0x6c, 0x2d, 0x3e, 0x94, 0xe8, 0x5a, 0xfd, 0x88, 0xab, 0xde, 0xda, 0x4d, 0xc9, 0xbe,
    0xca, 0x44, 0x9a, 0xda, 0x81, 0x02, 0xf6, 0x1f, 0x16, 0x55, 0x5b, 0x25, 0xa1, 0x74, 0x2e, 0x1b,
    0xe5, 0xf4, 0x73, 0x57, 0x5c, 0xbb, 0x0a, 0x3c, 0x2a, 0xad, 0xcd, 0x62, 0xa1, 0xe3, 0x16, 0xd6,
    0x34, 0x54, 0x80, 0x9e, 0x5d, 0x8a, 0x4d, 0xf1, 0xc1, 0x8e, 0x3f, 0x1a, 0x36, 0x1a, 0x92, 0xe1,
    0x82, 0x50, 0x4b, 0x72, 0x6d, 0x16, 0xc3, 0xe1, 0x5f, 0x96, 0x7b, 0x4a, 0xa8, 0xe8, 0x8c, 0x24,
    0x57, 0x7e, 0xe9, 0x31, 0x7c, 0x7d, 0x56, 0x9b, 0x7a, 0xe8, 0xd5, 0x04, 0xc0, 0x25, 0x6e, 0x10,
    0x6b, 0x52, 0x2c, 0x51, 0xd9, 0x79, 0xce, 0xee, 0x6d, 0x3c, 0x92, 0x76, 0x0d, 0x3a, 0x5f, 0xb1,
};
static const uint8_t OPC__KEY_CA_DQ[128] = {
    0x28, 0xa2, 0x5d, 0x1d, 0x26, 0x3e, 0xc9, 0xc5, 0xc5, 0x06, 0x68, 0x60, 0xa0, 0x04, 0x9c, 0xdb,
    0x17, 0x08, 0x99, 0x7d, 0x0c, 0xb0, 0x0d, 0xfe, 0x94, 0xac, 0xc9, 0x0f, 0x88, 0x2b, 0x4f, 0xc7,
    0x34, 0xc8, 0x4a, 0x8d, 0x00, 0xdd, 0xe3, 0x57, 0x4c, 0x04, 0x4c, 0x51, 0xb1, 0x1d, 0x8a, 0x3f,
    0xcb, 0xda, 0xcb, 0xaa, 0x27, 0x4e, 0xbe, 0x2b, 0xee, 0x81, 0xab, 0x96, 0x11, 0x53, 0x1d, 0xb9,
    0x8f, 0x36, 0x5c, 0x6a, 0xd4, 0xae, 0xc3, 0xcd, 0x14, 0x6f, 0xca, 0x19, 0xb0, 0xe8, 0x0d, 0xb5,
    0xc8, 0x71, 0x27, 0x0e, 0x20, 0xa2, 0x2d, 0xac, 0xb8, 0xd3, 0xf0, 0x4a, 0x8b, 0x0d, 0xf8, 0xbc,
    0xfb, 0x4f, 0xff, 0x39, 0xcd, 0x83, 0x58, 0xce, 0x10, 0x24, 0x8e, 0xb1, 0x0a, 0x9d, 0x3b, 0xf6,
    0xc2, 0x75, 0x48, 0x17, 0x24, 0xd3, 0x46, 0xc0, 0x08, 0xe3, 0x45, 0xbd, 0xf7, 0x0e, 0xcf, 0xa7,
};
static const uint8_t OPC__KEY_CA_IQ[128] = {
    0x5b, 0xbe, 0xb0, 0x2e, 0x4d, 0x65, 0xc0, 0x3d, 0xad, 0x67, 0xc2, 0xa0, 0x31, 0x15, 0x14, 0x8b,
    0x40, 0x64, 0x63, 0xb7, 0x83, 0x5c, 0xfb, 0x24, 0xc4, 0x23, 0xfa, 0x06, 0x31, 0x6a, 0xd7, 0x42,
    0x7f, 0xd5, 0xd0, 0xbf, 0x76, 0xc2, 0xce, 0xf6, 0x66, 0x5f, 0xc2, 0x5d, 0x81, 0x27, 0x60, 0xfe,
    0x80, 0x69, 0x9c, 0x23, 0x37, 0x52, 0x6f, 0x9a, 0x75, 0x2e, 0x4b, 0xa7, 0x88, 0x6b, 0xaf, 0x57,
    0xef, 0xe5, 0x49, 0xaf, 0x1b, 0x75, 0x42, 0xb0, 0xb5, 0xde, 0x65, 0xf8, 0x26, 0x74, 0x38, 0xca,
    0xa6, 0x1e, 0xbc, 0x90, 0x64, 0x80, 0xaa, 0x19, 0xe1, 0xb9, 0xb9, 0x11, 0x18, 0xbf, 0x97, 0xaa,
    0xb3, 0x89, 0x83, 0x8a, 0xe3, 0x3c, 0x42, 0x46, 0x5d, 0x39, 0x95, 0x0a, 0x5b, 0x33, 0xdc, 0xc1,
    0x62, 0x57, 0xae, 0x9e, 0x5c, 0x42, 0xdb, 0xe0, 0x8d, 0x2f, 0xc7, 0xca, 0x31, 0xc1, 0xeb, 0xda,
};
static const uint8_t OPC__KEY_CA_E[3] = {0x01, 0x00, 0x01};

OPC__FN void opc__key_builtin_ca(opc__key *k) {
    const uint8_t *part[8];
    size_t len[8];
    opcomms_err rc;
    part[0] = OPC__KEY_CA_N;
    len[0] = sizeof OPC__KEY_CA_N;
    part[1] = OPC__KEY_CA_E;
    len[1] = sizeof OPC__KEY_CA_E;
    part[2] = OPC__KEY_CA_E;
    len[2] = sizeof OPC__KEY_CA_E; /* d is not used */
    part[3] = OPC__KEY_CA_P;
    len[3] = sizeof OPC__KEY_CA_P;
    part[4] = OPC__KEY_CA_Q;
    len[4] = sizeof OPC__KEY_CA_Q;
    part[5] = OPC__KEY_CA_DP;
    len[5] = sizeof OPC__KEY_CA_DP;
    part[6] = OPC__KEY_CA_DQ;
    len[6] = sizeof OPC__KEY_CA_DQ;
    part[7] = OPC__KEY_CA_IQ;
    len[7] = sizeof OPC__KEY_CA_IQ;
    memset(k, 0, sizeof *k);
    rc = opc__key_take_rsa(k, part, len);
    OPCOMMS_ASSERT(rc == OPCOMMS_OK);
    (void)rc;
}

/* ---- generation ---- */

OPC__FN size_t opc__key_write_rsa(const opc__key *k, const uint8_t *d, size_t d_len, uint8_t *out,
                                  size_t cap) {
    uint8_t buf[OPC__KEY_DER_MAX];
    static const uint8_t zero[1] = {0};
    opc__derw w;
    const uint8_t *end, *mark;
    size_t len;
    opc__derw_init(&w, buf, sizeof buf);
    end = w.p;
    opc__derw_uint(&w, k->rsa.iq, k->rsa.iqlen);
    opc__derw_uint(&w, k->rsa.dq, k->rsa.dqlen);
    opc__derw_uint(&w, k->rsa.dp, k->rsa.dplen);
    opc__derw_uint(&w, k->rsa.q, k->rsa.qlen);
    opc__derw_uint(&w, k->rsa.p, k->rsa.plen);
    opc__derw_uint(&w, d, d_len);
    opc__derw_uint(&w, k->e, k->e_len);
    opc__derw_uint(&w, k->n, k->n_len);
    opc__derw_uint(&w, zero, 1);
    opc__derw_wrap(&w, OPC__DER_SEQ, end);
    opc__derw_wrap(&w, OPC__DER_OCTETS, end);
    mark = w.p;
    opc__derw_wrap(&w, 0x05, w.p);
    {
        const uint8_t *oid_end = w.p;
        opc__derw_bytes(&w, OPC__OID_RSA, sizeof OPC__OID_RSA);
        opc__derw_wrap(&w, OPC__DER_OID, oid_end);
    }
    opc__derw_wrap(&w, OPC__DER_SEQ, mark);
    opc__derw_uint(&w, zero, 1);
    opc__derw_wrap(&w, OPC__DER_SEQ, end);
    len = (size_t)(end - w.p);
    if (w.full || len > cap) len = 0;
    if (len > 0) memcpy(out, w.p, len);
    opc__mem_wipe(buf, sizeof buf);
    return len;
}

OPC__FN size_t opc__key_write_p256(const opc__key *k, uint8_t *out, size_t cap) {
    uint8_t buf[256];
    static const uint8_t zero[1] = {0}, one[1] = {1};
    opc__derw w;
    const uint8_t *end, *mark, *oid_end;
    size_t len;
    opc__derw_init(&w, buf, sizeof buf);
    end = w.p;
    opc__derw_bytes(&w, k->q, k->q_len);
    opc__derw_u8(&w, 0);
    opc__derw_wrap(&w, OPC__DER_BITS, end);
    opc__derw_wrap(&w, 0xa1, end);
    mark = w.p;
    opc__derw_bytes(&w, k->ec.x, k->ec.xlen);
    opc__derw_wrap(&w, OPC__DER_OCTETS, mark);
    opc__derw_uint(&w, one, 1);
    opc__derw_wrap(&w, OPC__DER_SEQ, end);
    opc__derw_wrap(&w, OPC__DER_OCTETS, end);
    mark = w.p;
    opc__derw_bytes(&w, OPC__OID_P256, sizeof OPC__OID_P256);
    opc__derw_wrap(&w, OPC__DER_OID, mark);
    oid_end = w.p;
    opc__derw_bytes(&w, OPC__OID_EC, sizeof OPC__OID_EC);
    opc__derw_wrap(&w, OPC__DER_OID, oid_end);
    opc__derw_wrap(&w, OPC__DER_SEQ, mark);
    opc__derw_uint(&w, zero, 1);
    opc__derw_wrap(&w, OPC__DER_SEQ, end);
    len = (size_t)(end - w.p);
    if (w.full || len > cap) len = 0;
    if (len > 0) memcpy(out, w.p, len);
    opc__mem_wipe(buf, sizeof buf);
    return len;
}

OPC__FN size_t opc__key_make_rsa(br_hmac_drbg_context *rng, unsigned bits, uint8_t *der,
                                 size_t cap) {
    opc__key k;
    uint8_t kbuf[BR_RSA_KBUF_PRIV_SIZE(4096)], nbuf[BR_RSA_KBUF_PUB_SIZE(4096)], d[512];
    br_rsa_public_key pub;
    size_t len = 0, d_len;
    memset(&k, 0, sizeof k);
    memset(&pub, 0, sizeof pub);
    if (br_rsa_keygen_get_default()(&rng->vtable, &k.rsa, kbuf, &pub, nbuf, bits, 65537u)) {
        memcpy(k.n, pub.n, pub.nlen);
        k.n_len = pub.nlen;
        memcpy(k.e, pub.e, pub.elen);
        k.e_len = pub.elen;
        d_len = br_rsa_compute_privexp_get_default()(d, &k.rsa, 65537u);
        if (d_len > 0) len = opc__key_write_rsa(&k, d, d_len, der, cap);
    }
    opc__mem_wipe(kbuf, sizeof kbuf);
    opc__mem_wipe(d, sizeof d);
    opc__key_wipe(&k);
    return len;
}

OPC__FN size_t opc__key_make_p256(br_hmac_drbg_context *rng, uint8_t *der, size_t cap) {
    opc__key k;
    br_ec_public_key pub;
    size_t len = 0;
    memset(&k, 0, sizeof k);
    if (br_ec_keygen(&rng->vtable, br_ec_get_default(), &k.ec, k.store, BR_EC_secp256r1) != 0) {
        k.q_len = br_ec_compute_pub(br_ec_get_default(), &pub, k.q, &k.ec);
        if (k.q_len == 65) len = opc__key_write_p256(&k, der, cap);
    }
    opc__key_wipe(&k);
    return len;
}

/* A fresh key as PKCS#8. `bits` 0: P-256. */
OPC__FN opcomms_err opc__key_generate_der(const opcomms_platform *plat, unsigned bits,
                                          uint8_t *der, size_t cap, size_t *der_len,
                                          opcomms_error *err) {
    uint8_t seed[48];
    br_hmac_drbg_context rng;
    size_t n;
    if (plat->random(plat->user, seed, sizeof seed) != OPCOMMS_OK) {
        return opc__err_set(err, OPCOMMS_E_RANDOM, 0, NULL);
    }
    br_hmac_drbg_init(&rng, &br_sha256_vtable, seed, sizeof seed);
    n = bits == 0 ? opc__key_make_p256(&rng, der, cap) : opc__key_make_rsa(&rng, bits, der, cap);
    opc__mem_wipe(seed, sizeof seed);
    opc__mem_wipe(&rng, sizeof rng);
    if (n == 0) return opc__err_set(err, OPCOMMS_E_RANDOM, 0, "key generation failed");
    *der_len = n;
    return OPCOMMS_OK;
}

/* The same as PEM. */
OPC__FN opcomms_err opc__key_generate(const opcomms_platform *plat, unsigned bits, char *out,
                                      size_t cap, size_t *len, opcomms_error *err) {
    uint8_t der[OPC__KEY_DER_MAX];
    size_t der_len = 0;
    opc__text t;
    opcomms_err rc = opc__key_generate_der(plat, bits, der, sizeof der, &der_len, err);
    if (rc != OPCOMMS_OK) return rc;
    opc__text_init(&t, out, cap);
    opc__pem_encode(&t, "PRIVATE KEY", der, der_len);
    opc__mem_wipe(der, sizeof der);
    if (t.cut) {
        opc__mem_wipe(out, cap);
        return opc__err_set(err, OPCOMMS_E_BUFFER, 0, "key text");
    }
    *len = t.len;
    return OPCOMMS_OK;
}

/* >>cert ==== L2 ==== certificates: our leaf, the CA's own, the hash inside a foreign one */

#define OPC__CERT_MAX 1600u /* RSA-4096 leaf under an RSA-4096 CA: 1 271 bytes */

/* The distinguished name of the well-known CA: CN = "rcgen self signed cert" as UTF8String. */
static const uint8_t OPC__CERT_CA_DN[33 + 2] = {
    0x30, 0x21, 0x31, 0x1f, 0x30, 0x1d, 0x06, 0x03, 0x55, 0x04, 0x03, 0x0c, 0x16, 'r', 'c', 'g',
    'e', 'n', ' ', 's', 'e', 'l', 'f', ' ', 's', 'i', 'g', 'n', 'e', 'd', ' ', 'c', 'e', 'r', 't'};

OPC__FN void opc__cert_algorithm(opc__derw *w, int rsa) {
    /* sha256WithRSAEncryption, NULL (RFC 4055 5); ecdsa-with-SHA256 (RFC 5758 3.2) */
    static const uint8_t rsa_alg[15] = {0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86,
                                        0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00};
    static const uint8_t ec_alg[12] = {0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86,
                                       0x48, 0xce, 0x3d, 0x04, 0x03, 0x02};
    if (rsa) {
        opc__derw_bytes(w, rsa_alg, sizeof rsa_alg);
    } else {
        opc__derw_bytes(w, ec_alg, sizeof ec_alg);
    }
}

/* SHA-256 over the raw public key: the RSAPublicKey DER, or the point. */
OPC__FN void opc__cert_raw_hash(const opc__key *k, uint8_t hash[32]) {
    uint8_t spki[OPC__KEY_SPKI_MAX];
    size_t len = opc__key_spki(k, spki, sizeof spki);
    opc__rd r, seq, alg, bits;
    opc__rd_init(&r, spki, len);
    if (opc__der_expect(&r, OPC__DER_SEQ, &seq) && opc__der_expect(&seq, OPC__DER_SEQ, &alg) &&
        opc__der_expect(&seq, OPC__DER_BITS, &bits)) {
        opc__key_sha256(bits.p + 1, opc__rd_left(&bits) - 1, hash);
    }
}

/* Extensions and subject of a leaf, or of a CA. */
OPC__FN void opc__cert_extensions(opc__derw *w, int is_ca, const uint8_t raw[32]) {
    /* subjectAltName: dNSName "localhost", iPAddress 127.0.0.1: the reference's client wants it */
    static const uint8_t san[28] = {0x30, 0x1a, 0x06, 0x03, 0x55, 0x1d, 0x11, 0x04, 0x13, 0x30,
                                    0x11, 0x82, 0x09, 'l', 'o', 'c', 'a', 'l', 'h', 'o',
                                    's', 't', 0x87, 0x04, 0x7f, 0x00, 0x00, 0x01};
    /* basicConstraints, critical, CA:TRUE */
    static const uint8_t basic[17] = {0x30, 0x0f, 0x06, 0x03, 0x55, 0x1d, 0x13, 0x01, 0x01,
                                      0xff, 0x04, 0x05, 0x30, 0x03, 0x01, 0x01, 0xff};
    static const uint8_t ski[11] = {0x30, 0x1d, 0x06, 0x03, 0x55, 0x1d,
                                    0x0e, 0x04, 0x16, 0x04, 0x14};
    const uint8_t *end = w->p;
    if (is_ca) {
        opc__derw_bytes(w, basic, sizeof basic);
        opc__derw_bytes(w, raw, 20);
        opc__derw_bytes(w, ski, sizeof ski);
    } else {
        opc__derw_bytes(w, san, sizeof san);
    }
    opc__derw_wrap(w, OPC__DER_SEQ, end);
    opc__derw_wrap(w, 0xa3, end);
}

/* TBSCertificate (RFC 5280 4.1) in the reference's field order and dates. The leaf's subject
   differs from its issuer, unlike the reference's, because OpenSSL would else take it for
   self-signed; no verifier of this protocol looks at it. */
OPC__FN void opc__cert_tbs(opc__derw *w, const opc__key *k, int is_ca, int rsa_ca) {
    static const uint8_t dates[34] = {
        0x30, 0x20, 0x17, 0x0d, '7', '5', '0', '1', '0', '1', '0', '0', '0', '0', '0', '0', 'Z',
        0x18, 0x0f, '4', '0', '9', '6', '0', '1', '0', '1', '0', '0', '0', '0', '0', '0', 'Z'};
    static const uint8_t subject[21] = {0x30, 0x13, 0x31, 0x11, 0x30, 0x0f, 0x06,
                                        0x03, 0x55, 0x04, 0x03, 0x0c, 0x08, 'o',
                                        'p', 'e', 'r', 'a', 't', 'o', 'r'};
    static const uint8_t version[5] = {0xa0, 0x03, 0x02, 0x01, 0x02};
    uint8_t spki[OPC__KEY_SPKI_MAX], raw[32];
    const uint8_t *end = w->p;
    size_t len = opc__key_spki(k, spki, sizeof spki);
    memset(raw, 0, sizeof raw);
    opc__cert_raw_hash(k, raw);
    opc__cert_extensions(w, is_ca, raw);
    opc__derw_bytes(w, spki, len);
    if (is_ca) {
        opc__derw_bytes(w, OPC__CERT_CA_DN, sizeof OPC__CERT_CA_DN);
    } else {
        opc__derw_bytes(w, subject, sizeof subject);
    }
    opc__derw_bytes(w, dates, sizeof dates);
    opc__derw_bytes(w, OPC__CERT_CA_DN, sizeof OPC__CERT_CA_DN);
    opc__cert_algorithm(w, rsa_ca);
    raw[0] &= 0x7fu; /* positive, at most 20 octets: RFC 5280 4.1.2.2 */
    opc__derw_uint(w, raw, 20);
    opc__derw_bytes(w, version, sizeof version);
    opc__derw_wrap(w, OPC__DER_SEQ, end);
}

OPC__FN opcomms_err opc__cert_make(const opc__key *k, const opc__key *ca, int is_ca, uint8_t *out,
                                   size_t cap, size_t *out_len, opcomms_error *err) {
    uint8_t tbs[OPC__CERT_MAX], buf[OPC__CERT_MAX], sig[512], hash[32];
    opc__derw w;
    const uint8_t *end, *tbs_at;
    size_t tbs_len, sig_len, len;
    opc__derw_init(&w, tbs, sizeof tbs);
    end = w.p;
    opc__cert_tbs(&w, k, is_ca, ca->kind == OPC__KEY_RSA);
    tbs_at = w.p;
    tbs_len = (size_t)(end - w.p);
    if (w.full) return opc__err_set(err, OPCOMMS_E_CERT, 0, "certificate too large");
    opc__key_sha256(tbs_at, tbs_len, hash);
    if (ca->kind == OPC__KEY_RSA) {
        sig_len = ca->n_len;
        if (!br_rsa_pkcs1_sign_get_default()(BR_HASH_OID_SHA256, hash, 32, &ca->rsa, sig)) {
            sig_len = 0;
        }
    } else {
        sig_len = br_ecdsa_sign_asn1_get_default()(br_ec_get_default(), &br_sha256_vtable, hash,
                                                   &ca->ec, sig);
    }
    if (sig_len == 0) return opc__err_set(err, OPCOMMS_E_CERT, 0, "signing failed");
    opc__derw_init(&w, buf, sizeof buf);
    end = w.p;
    opc__derw_bytes(&w, sig, sig_len);
    opc__derw_u8(&w, 0);
    opc__derw_wrap(&w, OPC__DER_BITS, end);
    opc__cert_algorithm(&w, ca->kind == OPC__KEY_RSA);
    opc__derw_bytes(&w, tbs_at, tbs_len);
    opc__derw_wrap(&w, OPC__DER_SEQ, end);
    len = (size_t)(end - w.p);
    if (w.full || len > cap) return opc__err_set(err, OPCOMMS_E_BUFFER, 0, "certificate");
    memcpy(out, w.p, len);
    *out_len = len;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__cert_leaf(const opc__key *leaf, const opc__key *ca, uint8_t *out,
                                   size_t cap, size_t *len, opcomms_error *err) {
    return opc__cert_make(leaf, ca, 0, out, cap, len, err);
}

OPC__FN opcomms_err opc__cert_ca(const opc__key *ca, uint8_t *out, size_t cap, size_t *len,
                                 opcomms_error *err) {
    return opc__cert_make(ca, ca, 1, out, cap, len, err);
}

/* The key hash of a DER certificate: the SPKI is the sixth field after an optional version. */
OPC__FN opcomms_err opc__cert_hash(const uint8_t *der, size_t len, uint8_t hash[32]) {
    opc__rd r, cert, tbs, el;
    unsigned tag = 0;
    int i;
    opc__rd_init(&r, der, len);
    if (!opc__der_expect(&r, OPC__DER_SEQ, &cert) || opc__rd_left(&r) != 0 ||
        !opc__der_expect(&cert, OPC__DER_SEQ, &tbs)) {
        return OPCOMMS_E_CERT;
    }
    if (opc__rd_left(&tbs) > 0 && tbs.p[0] == 0xa0u && !opc__der_next(&tbs, &tag, &el)) {
        return OPCOMMS_E_CERT;
    }
    for (i = 0; i < 5; i++) { /* serial, algorithm, issuer, validity, subject */
        if (!opc__der_next(&tbs, &tag, &el)) return OPCOMMS_E_CERT;
        if (tag != (i == 0 ? OPC__DER_INT : OPC__DER_SEQ)) return OPCOMMS_E_CERT;
    }
    {
        const uint8_t *start = tbs.p;
        opc__rd spki, alg, bits;
        if (!opc__der_expect(&tbs, OPC__DER_SEQ, &spki)) return OPCOMMS_E_CERT;
        if (!opc__der_expect(&spki, OPC__DER_SEQ, &alg) ||
            !opc__der_expect(&spki, OPC__DER_BITS, &bits)) {
            return OPCOMMS_E_CERT;
        }
        opc__key_sha256(start, (size_t)(tbs.p - start), hash);
    }
    return OPCOMMS_OK;
}

/* One extension of a leaf: 0 when it forbids the role. RFC 5280 4.2.1.9: a leaf is no CA; 4.2.1.12:
   purposes, if there are any, must name the role. */
OPC__FN int opc__cert_extension_fits(opc__rd *ext, int server) {
    static const uint8_t basic[3] = {0x55, 0x1d, 0x13}, purposes[3] = {0x55, 0x1d, 0x25};
    uint8_t purpose[8] = {0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02};
    opc__rd oid, value, seq, el;
    unsigned tag = 0;
    if (!opc__der_expect(ext, OPC__DER_OID, &oid) || !opc__der_next(ext, &tag, &value)) return 0;
    if (tag == 0x01 && !opc__der_next(ext, &tag, &value)) return 0; /* critical */
    if (tag != OPC__DER_OCTETS) return 0;
    if (opc__der_is(&oid, basic, sizeof basic)) {
        if (!opc__der_expect(&value, OPC__DER_SEQ, &seq)) return 0;
        return !(opc__rd_left(&seq) >= 3 && seq.p[0] == 0x01 && seq.p[2] != 0);
    }
    if (!opc__der_is(&oid, purposes, sizeof purposes)) return 1;
    if (server) purpose[7] = 0x01;
    if (!opc__der_expect(&value, OPC__DER_SEQ, &seq)) return 0;
    while (opc__rd_left(&seq) > 0) {
        if (!opc__der_expect(&seq, OPC__DER_OID, &el)) return 0;
        if (opc__der_is(&el, purpose, sizeof purpose)) return 1;
    }
    return 0;
}

/* What BearSSL's verifier does not ask of a leaf and the reference's does: version 3, no CA, the
   right purpose. `server`: the leaf is shown by a server. The end of der may be missing, as long as
   all that is signed is there. */
OPC__FN int opc__cert_leaf_fits(const uint8_t *der, size_t len, int server) {
    static const uint8_t v3[3] = {0x02, 0x01, 0x02};
    opc__rd r, tbs, el, exts, ext;
    unsigned tag = 0, n;
    int i;
    opc__rd_init(&r, der, len);
    if (opc__rd_u8(&r) != OPC__DER_SEQ) return 0;
    n = opc__rd_u8(&r);
    if (n > 0x80u) (void)opc__rd_bytes(&r, n & 0x7fu);
    if (r.bad || !opc__der_expect(&r, OPC__DER_SEQ, &tbs) ||
        !opc__der_expect(&tbs, 0xa0, &el) || !opc__der_is(&el, v3, sizeof v3)) {
        return 0;
    }
    for (i = 0; i < 6; i++) { /* serial, algorithm, issuer, validity, subject, key */
        if (!opc__der_next(&tbs, &tag, &el)) return 0;
    }
    while (opc__rd_left(&tbs) > 0) {
        if (!opc__der_next(&tbs, &tag, &el)) return 0;
        if (tag != 0xa3) continue; /* unique identifiers */
        if (!opc__der_expect(&el, OPC__DER_SEQ, &exts)) return 0;
        while (opc__rd_left(&exts) > 0) {
            if (!opc__der_expect(&exts, OPC__DER_SEQ, &ext)) return 0;
            if (!opc__cert_extension_fits(&ext, server)) return 0;
        }
    }
    return 1;
}

/* PEM or DER. */
OPC__FN opcomms_err opc__cert_file_hash(const opcomms_platform *plat, const char *path,
                                        uint8_t hash[32], opcomms_error *err) {
    uint8_t der[OPC__KEY_DER_MAX * 2];
    char *text = NULL;
    size_t len = 0, der_len = 0;
    opc__mem mem;
    opcomms_err rc;
    opc__key_default_mem(&mem);
    rc = opc__plat_read_file(plat, &mem, path, OPC__KEY_FILE_MAX, &text, &len, err);
    if (rc != OPCOMMS_OK) return rc;
    if (len > 0 && (uint8_t)text[0] == OPC__DER_SEQ) {
        rc = opc__cert_hash((const uint8_t *)text, len, hash);
    } else {
        rc = opc__pem_decode(text, len, der, sizeof der, &der_len);
        if (rc == OPCOMMS_OK) rc = opc__cert_hash(der, der_len, hash);
        if (rc != OPCOMMS_OK && rc != OPCOMMS_E_NO_PEM) rc = OPCOMMS_E_CERT;
    }
    opc__mem_free(&mem, text, len + 1);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, path);
}

/* >>seal ==== L2 ==== private keys under a password (PBES2, RFC 8018); a cipher for the log */

/* What is read and written, with the values that are taken (RFC 5958 3, RFC 8018 A.2, A.4, B.2.5):

       SEQUENCE                                EncryptedPrivateKeyInfo
         SEQUENCE
           OID pkcs5PBES2
           SEQUENCE
             SEQUENCE
               OID pkcs5PBKDF2
               SEQUENCE
                 OCTET STRING                  salt, 8 to 64 bytes
                 INTEGER                       iterations, 1 to 10 000 000
                 INTEGER OPTIONAL              length of the derived key, 32
                 SEQUENCE { OID hmacWithSHA256, NULL }
             SEQUENCE
               OID aes256-CBC-PAD
               OCTET STRING                    IV, 16 bytes
         OCTET STRING                          the key's PKCS#8, padded to blocks and encrypted

   The last SEQUENCE of the key derivation may be absent and means HMAC-SHA-1 then. That is what
   OpenSSL wrote before 1.1; it is refused by name, and `openssl pkcs8 -topk8 -v2 aes-256-cbc`
   writes such a file anew. */

#define OPC__SEAL_SALT_MIN 8u
#define OPC__SEAL_SALT_MAX 64u
#define OPC__SEAL_SALT 16u /* of those we make; RFC 8018 4.1 */
#define OPC__SEAL_BLOCK 16u
#define OPC__SEAL_PASSWORD_MAX 1024u
#define OPC__SEAL_ITERATIONS_MIN 1000u     /* of those we make; RFC 8018 4.2 */
#define OPC__SEAL_ITERATIONS_MAX 10000000u /* some 6 s: no file keeps us longer */

static const uint8_t OPC__SEAL_PBES2[9] = {0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d};
static const uint8_t OPC__SEAL_PBKDF2[9] = {0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c};
static const uint8_t OPC__SEAL_HMAC[8] = {0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x09};
static const uint8_t OPC__SEAL_AES[9] = {0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a};

/* Who knows the password, and how much work may be asked of us. */
typedef struct opc__seal_ask {
    opcomms_password_fn password; /* NULL: nobody */
    void *user;
    uint32_t iterations_max;
} opc__seal_ask;

typedef struct opc__seal_form {
    const uint8_t *salt;
    size_t salt_len;
    uint32_t iterations;
    const uint8_t *iv;
    const uint8_t *data;
    size_t data_len;
} opc__seal_form;

OPC__FN void opc__seal_ask_init(opc__seal_ask *ask, opcomms_password_fn password, void *user) {
    ask->password = password;
    ask->user = user;
    ask->iterations_max = OPC__SEAL_ITERATIONS_MAX;
}

OPC__FN opcomms_err opc__seal_other(const char **why, const char *text) {
    *why = text;
    return OPCOMMS_E_KEY_TYPE;
}

/* The content of keyDerivationFunc. */
OPC__FN opcomms_err opc__seal_kdf(opc__rd *r, uint32_t iterations_max, opc__seal_form *f,
                                  const char **why) {
    opc__rd oid, params, el, prf;
    const uint8_t *p = NULL;
    unsigned tag = 0;
    uint64_t count = 0;
    size_t n = 0, i;
    if (!opc__der_expect(r, OPC__DER_OID, &oid)) return OPCOMMS_E_KEY_DAMAGED;
    if (!opc__der_is(&oid, OPC__SEAL_PBKDF2, sizeof OPC__SEAL_PBKDF2)) {
        return opc__seal_other(why, "its key derivation is not PBKDF2");
    }
    if (!opc__der_expect(r, OPC__DER_SEQ, &params) || opc__rd_left(r) != 0 ||
        !opc__der_next(&params, &tag, &el)) {
        return OPCOMMS_E_KEY_DAMAGED;
    }
    if (tag == OPC__DER_SEQ) return opc__seal_other(why, "its salt comes from elsewhere");
    if (tag != OPC__DER_OCTETS) return OPCOMMS_E_KEY_DAMAGED;
    f->salt = el.p;
    f->salt_len = opc__rd_left(&el);
    if (f->salt_len < OPC__SEAL_SALT_MIN || f->salt_len > OPC__SEAL_SALT_MAX) {
        return opc__seal_other(why, "its salt is not of 8 to 64 bytes");
    }
    if (!opc__der_uint(&params, &p, &n) || n == 0) return OPCOMMS_E_KEY_DAMAGED;
    for (i = 0; i < n && i < 5; i++) count = (count << 8) | p[i]; /* p[0] is not 0 */
    if (count > iterations_max) {
        return opc__seal_other(why, "it asks for too many iterations");
    }
    f->iterations = (uint32_t)count;
    if (opc__rd_left(&params) > 0 && params.p[0] == OPC__DER_INT) {
        if (!opc__der_uint(&params, &p, &n)) return OPCOMMS_E_KEY_DAMAGED;
        if (n != 1 || p[0] != 32) return opc__seal_other(why, "its derived key is not of 32 bytes");
    }
    if (opc__rd_left(&params) == 0) {
        return opc__seal_other(why, "its PRF is HMAC-SHA-1, not HMAC-SHA-256");
    }
    if (!opc__der_expect(&params, OPC__DER_SEQ, &prf) || opc__rd_left(&params) != 0 ||
        !opc__der_expect(&prf, OPC__DER_OID, &oid)) {
        return OPCOMMS_E_KEY_DAMAGED;
    }
    if (!opc__der_is(&oid, OPC__SEAL_HMAC, sizeof OPC__SEAL_HMAC)) {
        return opc__seal_other(why, "its PRF is not HMAC-SHA-256");
    }
    if (!opc__der_expect(&prf, 0x05, &el) || opc__rd_left(&el) != 0 || opc__rd_left(&prf) != 0) {
        return OPCOMMS_E_KEY_DAMAGED;
    }
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__seal_parse(const uint8_t *der, size_t len, uint32_t iterations_max,
                                    opc__seal_form *f, const char **why) {
    opc__rd r, seq, alg, data, params, kdf, cipher, el;
    opcomms_err rc;
    opc__rd_init(&r, der, len);
    if (!opc__der_expect(&r, OPC__DER_SEQ, &seq) || opc__rd_left(&r) != 0 ||
        !opc__der_expect(&seq, OPC__DER_SEQ, &alg) ||
        !opc__der_expect(&seq, OPC__DER_OCTETS, &data) || opc__rd_left(&seq) != 0 ||
        !opc__der_expect(&alg, OPC__DER_OID, &el)) {
        return OPCOMMS_E_KEY_DAMAGED;
    }
    if (!opc__der_is(&el, OPC__SEAL_PBES2, sizeof OPC__SEAL_PBES2)) {
        return opc__seal_other(why, "its encryption is not PBES2");
    }
    if (!opc__der_expect(&alg, OPC__DER_SEQ, &params) || opc__rd_left(&alg) != 0 ||
        !opc__der_expect(&params, OPC__DER_SEQ, &kdf) ||
        !opc__der_expect(&params, OPC__DER_SEQ, &cipher) || opc__rd_left(&params) != 0) {
        return OPCOMMS_E_KEY_DAMAGED;
    }
    rc = opc__seal_kdf(&kdf, iterations_max, f, why);
    if (rc != OPCOMMS_OK) return rc;
    if (!opc__der_expect(&cipher, OPC__DER_OID, &el)) return OPCOMMS_E_KEY_DAMAGED;
    if (!opc__der_is(&el, OPC__SEAL_AES, sizeof OPC__SEAL_AES)) {
        return opc__seal_other(why, "its cipher is not AES-256-CBC");
    }
    if (!opc__der_expect(&cipher, OPC__DER_OCTETS, &el) || opc__rd_left(&cipher) != 0) {
        return OPCOMMS_E_KEY_DAMAGED;
    }
    if (opc__rd_left(&el) != OPC__SEAL_BLOCK) {
        return opc__seal_other(why, "its IV is not of 16 bytes");
    }
    f->iv = el.p;
    f->data = data.p;
    f->data_len = opc__rd_left(&data);
    if (f->data_len == 0 || f->data_len % OPC__SEAL_BLOCK != 0) return OPCOMMS_E_KEY_DAMAGED;
    return OPCOMMS_OK;
}

/* RFC 8018 5.2. The key is as long as one output of the PRF, so that one block is all. */
OPC__FN void opc__seal_derive(const char *password, size_t len, const uint8_t *salt,
                              size_t salt_len, uint32_t iterations, uint8_t key[32]) {
    static const uint8_t first[4] = {0, 0, 0, 1};
    br_hmac_key_context start;
    br_hmac_context mac;
    uint8_t u[32];
    uint32_t i;
    size_t k;
    OPCOMMS_ASSERT(iterations > 0);
    br_hmac_key_init(&start, &br_sha256_vtable, password, len);
    br_hmac_init(&mac, &start, 0);
    br_hmac_update(&mac, salt, salt_len);
    br_hmac_update(&mac, first, sizeof first);
    br_hmac_out(&mac, u);
    memcpy(key, u, sizeof u);
    for (i = 1; i < iterations; i++) {
        br_hmac_init(&mac, &start, 0);
        br_hmac_update(&mac, u, sizeof u);
        br_hmac_out(&mac, u);
        for (k = 0; k < sizeof u; k++) key[k] = (uint8_t)(key[k] ^ u[k]);
    }
    opc__mem_wipe(&start, sizeof start);
    opc__mem_wipe(&mac, sizeof mac);
    opc__mem_wipe(u, sizeof u);
}

/* The caller wipes buf. `missing` when there is none. */
OPC__FN opcomms_err opc__seal_password(const opc__seal_ask *ask, opcomms_err missing,
                                       char buf[OPC__SEAL_PASSWORD_MAX], size_t *len,
                                       const char **why) {
    int n;
    memset(buf, 0, OPC__SEAL_PASSWORD_MAX); /* should it return more than it has written */
    n = ask->password(ask->user, buf, OPC__SEAL_PASSWORD_MAX);
    *why = n < 0 ? "no password was given" : "the password is longer than its buffer";
    if (n < 0) return missing;
    if ((unsigned)n > OPC__SEAL_PASSWORD_MAX) return OPCOMMS_E_INVAL;
    *len = (size_t)n;
    return OPCOMMS_OK;
}

/* Was the password right? What comes out of a wrong one is noise, which has neither the padding
   (RFC 8018 6.1.1) nor the outline of a PKCS#8 (RFC 5958 2). Both failures are one error, so that
   it tells as little as it can to someone who alters the file. */
OPC__FN opcomms_err opc__seal_check(const uint8_t *p, size_t n, size_t *len) {
    opc__rd r, seq, version, el, oid;
    unsigned tag = 0, wrong, i;
    int has_public = 0;
    unsigned pad = p[n - 1];
    OPCOMMS_ASSERT(n >= OPC__SEAL_BLOCK);
    OPCOMMS_ASSERT(n % OPC__SEAL_BLOCK == 0);
    wrong = pad == 0 || pad > OPC__SEAL_BLOCK;
    for (i = 1; i <= OPC__SEAL_BLOCK; i++) wrong |= i <= pad && p[n - i] != pad;
    if (wrong) return OPCOMMS_E_PASSWORD;
    opc__rd_init(&r, p, n - pad);
    if (!opc__der_expect(&r, OPC__DER_SEQ, &seq) || opc__rd_left(&r) != 0 ||
        !opc__der_expect(&seq, OPC__DER_INT, &version) || opc__rd_left(&version) != 1 ||
        version.p[0] > 1 || !opc__der_expect(&seq, OPC__DER_SEQ, &el) ||
        !opc__der_expect(&el, OPC__DER_OID, &oid) ||
        !opc__der_expect(&seq, OPC__DER_OCTETS, &el)) {
        return OPCOMMS_E_PASSWORD;
    }
    while (opc__rd_left(&seq) > 0) {
        if (!opc__der_next(&seq, &tag, &el)) return OPCOMMS_E_PASSWORD;
        has_public |= tag == 0x81u || tag == 0xa1u;
    }
    /* Version 2 is for keys with their public part. One without had its bit flipped, by way of the
       IV, which nothing else protects. */
    if (version.p[0] == 1 && !has_public) return OPCOMMS_E_KEY_DAMAGED;
    *len = n - pad;
    return OPCOMMS_OK;
}

/* EncryptedPrivateKeyInfo to PKCS#8; `out` holds OPC__KEY_DER_MAX bytes, zero on failure. */
OPC__FN opcomms_err opc__seal_open(const uint8_t *der, size_t len, const opc__seal_ask *ask,
                                   uint8_t *out, size_t *out_len, const char **why) {
    char password[OPC__SEAL_PASSWORD_MAX];
    uint8_t key[32], iv[OPC__SEAL_BLOCK];
    br_aes_ct_cbcdec_keys aes;
    opc__seal_form f;
    size_t n = 0;
    opcomms_err rc;
    OPCOMMS_ASSERT(len <= OPC__KEY_DER_MAX);
    memset(&f, 0, sizeof f);
    rc = opc__seal_parse(der, len, ask->iterations_max, &f, why);
    if (rc != OPCOMMS_OK) return rc;
    OPCOMMS_ASSERT(f.data_len < len);
    rc = opc__seal_password(ask, OPCOMMS_E_ENCRYPTED, password, &n, why);
    if (rc == OPCOMMS_OK) {
        *why = "private key";
        opc__seal_derive(password, n, f.salt, f.salt_len, f.iterations, key);
        memcpy(out, f.data, f.data_len);
        memcpy(iv, f.iv, sizeof iv);
        br_aes_ct_cbcdec_init(&aes, key, sizeof key);
        br_aes_ct_cbcdec_run(&aes, iv, out, f.data_len);
        opc__mem_wipe(&aes, sizeof aes);
        opc__mem_wipe(key, sizeof key);
        rc = opc__seal_check(out, f.data_len, out_len);
        if (rc != OPCOMMS_OK) opc__mem_wipe(out, f.data_len);
    }
    opc__mem_wipe(password, sizeof password);
    return rc;
}

/* The first key of a PEM text into *k and, as it stands there but for the encryption, into `der`,
   which holds OPC__KEY_DER_MAX bytes. On failure both are zero. */
OPC__FN opcomms_err opc__seal_read(opc__key *k, const char *pem, size_t len,
                                   const opc__seal_ask *ask, uint8_t *der, size_t *der_len,
                                   opcomms_error *err) {
    uint8_t raw[OPC__KEY_DER_MAX];
    size_t n = 0;
    int form = OPC__PEM_PLAIN;
    const char *why = "private key";
    opcomms_err rc;
    memset(k, 0, sizeof *k);
    memset(der, 0, OPC__KEY_DER_MAX);
    rc = opc__pem_block(pem, len, raw, sizeof raw, &n, &form);
    if (rc == OPCOMMS_OK && form == OPC__PEM_SEALED) rc = OPCOMMS_E_ENCRYPTED;
    if (rc == OPCOMMS_OK) rc = opc__key_from_der(k, raw, n); /* the DER may say it, too */
    if (rc == OPCOMMS_OK) {
        memcpy(der, raw, n);
        *der_len = n;
    } else if (ask->password == NULL) {
        if (form != OPC__PEM_PLAIN) rc = OPCOMMS_E_ENCRYPTED;
    } else if (form == OPC__PEM_OLD) {
        rc = opc__seal_other(&why, "its encryption is the old one of PEM, not PBES2");
    } else if (rc == OPCOMMS_E_ENCRYPTED) {
        rc = opc__seal_open(raw, n, ask, der, der_len, &why);
        if (rc == OPCOMMS_OK) rc = opc__key_from_der(k, der, *der_len);
    }
    opc__mem_wipe(raw, sizeof raw);
    if (rc == OPCOMMS_OK) return rc;
    opc__mem_wipe(der, OPC__KEY_DER_MAX);
    opc__key_wipe(k);
    return opc__err_set(err, rc, 0, why);
}

OPC__FN opcomms_err opc__seal_from_pem(opc__key *k, const char *pem, size_t len,
                                       const opc__seal_ask *ask, opcomms_error *err) {
    uint8_t der[OPC__KEY_DER_MAX];
    size_t n = 0;
    opcomms_err rc;
    if (ask->password == NULL) return opc__key_from_pem(k, pem, len, err);
    rc = opc__seal_read(k, pem, len, ask, der, &n, err);
    opc__mem_wipe(der, sizeof der);
    return rc;
}

OPC__FN opcomms_err opc__seal_load_file(const opcomms_platform *plat, opc__mem *mem,
                                        const char *path, const opc__seal_ask *ask, opc__key *k,
                                        opcomms_error *err) {
    char *text = NULL;
    size_t len = 0;
    opcomms_err rc;
    if (ask->password == NULL) return opc__key_load_file(plat, mem, path, k, err);
    rc = opc__plat_read_file(plat, mem, path, OPC__KEY_FILE_MAX, &text, &len, err);
    if (rc != OPCOMMS_OK) return rc;
    rc = opc__seal_from_pem(k, text, len, ask, err);
    opc__mem_free_wiped(mem, text, len + 1);
    return rc;
}

OPC__FN opcomms_err opc__seal_file_hash(const opcomms_platform *plat, const char *path,
                                        const opc__seal_ask *ask, uint8_t hash[32],
                                        opcomms_error *err) {
    opc__mem mem;
    opc__key k;
    opcomms_err rc;
    opc__key_default_mem(&mem);
    rc = opc__seal_load_file(plat, &mem, path, ask, &k, err);
    if (rc != OPCOMMS_OK) return rc;
    opc__key_hash(&k, hash);
    opc__key_wipe(&k);
    return OPCOMMS_OK;
}

/* ---- making ---- */

/* A key that is already encrypted stands in data, as long as `cap` allows; see the drawing. */
OPC__FN size_t opc__seal_write(const opc__seal_form *f, uint8_t *out, size_t cap) {
    uint8_t count[4];
    opc__derw w;
    const uint8_t *end, *alg, *mark, *inner;
    opc__derw_init(&w, out, cap);
    end = w.p;
    opc__derw_bytes(&w, f->data, f->data_len);
    opc__derw_wrap(&w, OPC__DER_OCTETS, end);
    alg = mark = w.p;
    opc__derw_bytes(&w, f->iv, OPC__SEAL_BLOCK);
    opc__derw_wrap(&w, OPC__DER_OCTETS, mark);
    inner = w.p;
    opc__derw_bytes(&w, OPC__SEAL_AES, sizeof OPC__SEAL_AES);
    opc__derw_wrap(&w, OPC__DER_OID, inner);
    opc__derw_wrap(&w, OPC__DER_SEQ, mark);
    mark = inner = w.p;
    opc__derw_wrap(&w, 0x05, inner);
    inner = w.p;
    opc__derw_bytes(&w, OPC__SEAL_HMAC, sizeof OPC__SEAL_HMAC);
    opc__derw_wrap(&w, OPC__DER_OID, inner);
    opc__derw_wrap(&w, OPC__DER_SEQ, mark);
    opc__buf_put32(count, f->iterations);
    opc__derw_uint(&w, count, sizeof count);
    inner = w.p;
    opc__derw_bytes(&w, f->salt, f->salt_len);
    opc__derw_wrap(&w, OPC__DER_OCTETS, inner);
    opc__derw_wrap(&w, OPC__DER_SEQ, mark);
    inner = w.p;
    opc__derw_bytes(&w, OPC__SEAL_PBKDF2, sizeof OPC__SEAL_PBKDF2);
    opc__derw_wrap(&w, OPC__DER_OID, inner);
    opc__derw_wrap(&w, OPC__DER_SEQ, mark);
    opc__derw_wrap(&w, OPC__DER_SEQ, alg);
    inner = w.p;
    opc__derw_bytes(&w, OPC__SEAL_PBES2, sizeof OPC__SEAL_PBES2);
    opc__derw_wrap(&w, OPC__DER_OID, inner);
    opc__derw_wrap(&w, OPC__DER_SEQ, alg);
    opc__derw_wrap(&w, OPC__DER_SEQ, end);
    if (w.full) return 0;
    memmove(out, w.p, (size_t)(end - w.p));
    return (size_t)(end - w.p);
}

/* PKCS#8 to EncryptedPrivateKeyInfo, under a fresh salt and IV. */
OPC__FN opcomms_err opc__seal_close(const opcomms_platform *plat, const char *password, size_t len,
                                    uint32_t iterations, const uint8_t *der, size_t der_len,
                                    uint8_t *out, size_t cap, size_t *out_len) {
    uint8_t data[OPC__KEY_DER_MAX], fresh[OPC__SEAL_SALT + OPC__SEAL_BLOCK];
    uint8_t key[32], iv[OPC__SEAL_BLOCK];
    br_aes_ct_cbcenc_keys aes;
    opc__seal_form f;
    size_t pad = OPC__SEAL_BLOCK - der_len % OPC__SEAL_BLOCK, n;
    OPCOMMS_ASSERT(len > 0);
    OPCOMMS_ASSERT(iterations <= OPC__SEAL_ITERATIONS_MAX);
    if (der_len > sizeof data - pad) return OPCOMMS_E_KEY_TYPE;
    if (plat->random(plat->user, fresh, sizeof fresh) != OPCOMMS_OK) return OPCOMMS_E_RANDOM;
    memcpy(data, der, der_len);
    memset(data + der_len, (int)pad, pad);
    f.salt = fresh;
    f.salt_len = OPC__SEAL_SALT;
    f.iterations = iterations;
    f.iv = fresh + OPC__SEAL_SALT;
    f.data = data;
    f.data_len = der_len + pad;
    memcpy(iv, f.iv, sizeof iv);
    opc__seal_derive(password, len, f.salt, f.salt_len, iterations, key);
    br_aes_ct_cbcenc_init(&aes, key, sizeof key);
    br_aes_ct_cbcenc_run(&aes, iv, data, f.data_len);
    opc__mem_wipe(&aes, sizeof aes);
    opc__mem_wipe(key, sizeof key);
    n = opc__seal_write(&f, out, cap);
    if (n == 0) return OPCOMMS_E_KEY_TYPE;
    *out_len = n;
    return OPCOMMS_OK;
}

/* The password of a key to be written, asked for into buf, which the caller wipes. */
OPC__FN opcomms_err opc__seal_new_password(const opc__seal_ask *ask,
                                           char buf[OPC__SEAL_PASSWORD_MAX], size_t *len,
                                           opcomms_error *err) {
    const char *why = NULL;
    opcomms_err rc = opc__seal_password(ask, OPCOMMS_E_PASSWORD, buf, len, &why);
    if (rc == OPCOMMS_OK && *len == 0) {
        rc = OPCOMMS_E_PASSWORD;
        why = "an empty one protects nothing";
    }
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, why);
}

/* PKCS#8 as PEM, encrypted when len is not 0. */
OPC__FN opcomms_err opc__seal_pem(const opcomms_platform *plat, const char *password, size_t len,
                                  uint32_t iterations, const uint8_t *der, size_t der_len,
                                  char *out, size_t cap, size_t *out_len, opcomms_error *err) {
    uint8_t sealed[OPC__KEY_DER_MAX];
    size_t n = 0;
    opc__text t;
    opc__text_init(&t, out, cap);
    if (len == 0) {
        opc__pem_encode(&t, "PRIVATE KEY", der, der_len);
    } else {
        opcomms_err rc = opc__seal_close(plat, password, len, iterations, der, der_len, sealed,
                                         sizeof sealed, &n);
        if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, "private key");
        opc__pem_encode(&t, "ENCRYPTED PRIVATE KEY", sealed, n);
    }
    if (t.cut) {
        opc__mem_wipe(out, cap);
        return opc__err_set(err, OPCOMMS_E_BUFFER, 0, "key text");
    }
    *out_len = t.len;
    return OPCOMMS_OK;
}

/* Whatever form of *k stands in der: as PKCS#8, in place. PKCS#1 and SEC1 become its OCTET STRING,
   byte for byte (RFC 5958 2; RFC 5915 3 allows the curve to be named twice). */
OPC__FN opcomms_err opc__seal_pkcs8(const opc__key *k, uint8_t *der, size_t *der_len) {
    uint8_t buf[OPC__KEY_DER_MAX];
    static const uint8_t zero[1] = {0};
    opc__derw w;
    opc__rd r, seq, el;
    const uint8_t *end, *mark, *inner;
    opc__rd_init(&r, der, *der_len);
    if (!opc__der_expect(&r, OPC__DER_SEQ, &seq)) return OPCOMMS_E_KEY_DAMAGED;
    *der_len -= opc__rd_left(&r); /* what stands behind it was never part of the key */
    if (!opc__der_expect(&seq, OPC__DER_INT, &el)) return OPCOMMS_E_KEY_DAMAGED;
    if (opc__rd_left(&seq) > 0 && seq.p[0] == OPC__DER_SEQ) return OPCOMMS_OK;
    opc__derw_init(&w, buf, sizeof buf);
    end = w.p;
    opc__derw_bytes(&w, der, *der_len);
    opc__derw_wrap(&w, OPC__DER_OCTETS, end);
    mark = inner = w.p;
    if (k->kind == OPC__KEY_RSA) {
        opc__derw_wrap(&w, 0x05, inner);
        inner = w.p;
        opc__derw_bytes(&w, OPC__OID_RSA, sizeof OPC__OID_RSA);
    } else {
        if (k->ec.curve == BR_EC_secp256r1) {
            opc__derw_bytes(&w, OPC__OID_P256, sizeof OPC__OID_P256);
        } else {
            opc__derw_bytes(&w, OPC__OID_P384, sizeof OPC__OID_P384);
        }
        opc__derw_wrap(&w, OPC__DER_OID, inner);
        inner = w.p;
        opc__derw_bytes(&w, OPC__OID_EC, sizeof OPC__OID_EC);
    }
    opc__derw_wrap(&w, OPC__DER_OID, inner);
    opc__derw_wrap(&w, OPC__DER_SEQ, mark);
    opc__derw_uint(&w, zero, 1);
    opc__derw_wrap(&w, OPC__DER_SEQ, end);
    if (!w.full) {
        *der_len = (size_t)(end - w.p);
        memcpy(der, w.p, *der_len);
    }
    opc__mem_wipe(buf, sizeof buf);
    return w.full ? OPCOMMS_E_KEY_TYPE : OPCOMMS_OK;
}

/* Is there one PEM block, or none, apart from the curve that `openssl ecparam` writes in front? */
OPC__FN int opc__seal_alone(const char *pem, size_t len) {
    const char *end = pem + len, *p = opc__pem_find(pem, end, "-----BEGIN ");
    if (p != NULL && opc__pem_find(p, end, "-----BEGIN EC PARAMETERS-----") == p) {
        p = opc__pem_find(p + 1, end, "-----BEGIN ");
    }
    return p == NULL || opc__pem_find(p + 1, end, "-----BEGIN ") == NULL;
}

/* The text of a key file, with its key under another password or none. */
OPC__FN opcomms_err opc__seal_change(const opcomms_platform *plat, const char *pem, size_t len,
                                     const opc__seal_ask *was, const opc__seal_ask *now,
                                     uint32_t iterations, char *out, size_t cap, size_t *out_len,
                                     opcomms_error *err) {
    char password[OPC__SEAL_PASSWORD_MAX];
    uint8_t der[OPC__KEY_DER_MAX];
    opc__key k;
    size_t der_len = 0, n = 0;
    opcomms_err rc;
    if (!opc__seal_alone(pem, len)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "there is more in the file than a key");
    }
    rc = opc__seal_read(&k, pem, len, was, der, &der_len, err);
    if (rc != OPCOMMS_OK) return rc;
    memset(password, 0, sizeof password);
    if (now->password != NULL) rc = opc__seal_new_password(now, password, &n, err);
    if (rc == OPCOMMS_OK) {
        rc = opc__seal_pkcs8(&k, der, &der_len);
        if (rc != OPCOMMS_OK) (void)opc__err_set(err, rc, 0, "private key");
    }
    if (rc == OPCOMMS_OK) {
        rc = opc__seal_pem(plat, password, n, iterations, der, der_len, out, cap, out_len, err);
    }
    opc__mem_wipe(password, sizeof password);
    opc__mem_wipe(der, sizeof der);
    opc__key_wipe(&k);
    return rc;
}

/* ---- for the log: a cipher, keys derived from keys, and a key under a secret ---- */

#define OPC__SEAL_TAG 16u

/* Looked for once: asking the processor what it can do is slow on a virtual machine. */
typedef struct opc__seal_cipher {
    br_chacha20_run stream;
    br_poly1305_run mac;
} opc__seal_cipher;

OPC__FN void opc__seal_cipher_init(opc__seal_cipher *c) {
    c->stream = br_chacha20_sse2_get();
    if (c->stream == NULL) c->stream = br_chacha20_ct_run;
    c->mac = br_poly1305_ctmulq_get();
    if (c->mac == NULL) c->mac = br_poly1305_ctmul_run;
}

/* ChaCha20-Poly1305, RFC 8439 2.8; p is encrypted in place, `ad` only covered by the tag. */
OPC__FN void opc__seal_encrypt(const opc__seal_cipher *c, const uint8_t key[32],
                               const uint8_t nonce[12], const uint8_t *ad, size_t ad_len,
                               uint8_t *p, size_t n, uint8_t tag[OPC__SEAL_TAG]) {
    c->mac(key, nonce, p, n, ad, ad_len, tag, c->stream, 1);
}

/* 0: the tag is another one; p is zero then. */
OPC__FN int opc__seal_decrypt(const opc__seal_cipher *c, const uint8_t key[32],
                              const uint8_t nonce[12], const uint8_t *ad, size_t ad_len,
                              uint8_t *p, size_t n, const uint8_t tag[OPC__SEAL_TAG]) {
    uint8_t own[OPC__SEAL_TAG];
    c->mac(key, nonce, p, n, ad, ad_len, own, c->stream, 0);
    if (opc__str_equal_ct(own, tag, sizeof own)) return 1;
    opc__mem_wipe(p, n);
    return 0;
}

/* HKDF-SHA-256, RFC 5869. */
OPC__FN void opc__seal_hkdf(const uint8_t *salt, size_t salt_len, const uint8_t *secret,
                            size_t secret_len, const void *info, size_t info_len, uint8_t *out,
                            size_t out_len) {
    br_hkdf_context h;
    br_hkdf_init(&h, &br_sha256_vtable, salt, salt_len);
    br_hkdf_inject(&h, secret, secret_len);
    br_hkdf_flip(&h);
    (void)br_hkdf_produce(&h, info, info_len, out, out_len);
    opc__mem_wipe(&h, sizeof h);
}

OPC__FN void opc__seal_inject(br_hkdf_context *h, const uint8_t *p, size_t n) {
    uint8_t len[2];
    while (n > 0 && p[0] == 0) {
        p++;
        n--;
    }
    opc__buf_put16(len, (uint16_t)n);
    br_hkdf_inject(h, len, sizeof len);
    br_hkdf_inject(h, p, n);
}

/* A secret that whoever holds the private key can make again, in whatever form it stands: from its
   kind, and the scalar or both primes, the larger first, each with its length and without leading
   zeros. */
OPC__FN void opc__seal_secret(const opc__key *k, uint8_t out[32]) {
    static const char label[] = "opcomms log, private key";
    uint8_t kind = (uint8_t)k->kind;
    br_hkdf_context h;
    br_hkdf_init(&h, &br_sha256_vtable, label, sizeof label - 1);
    br_hkdf_inject(&h, &kind, 1);
    if (k->kind == OPC__KEY_EC) {
        opc__seal_inject(&h, k->ec.x, k->ec.xlen);
    } else {
        int swap = k->rsa.plen != k->rsa.qlen ? k->rsa.plen < k->rsa.qlen
                                              : memcmp(k->rsa.p, k->rsa.q, k->rsa.plen) < 0;
        opc__seal_inject(&h, swap ? k->rsa.q : k->rsa.p, swap ? k->rsa.qlen : k->rsa.plen);
        opc__seal_inject(&h, swap ? k->rsa.p : k->rsa.q, swap ? k->rsa.plen : k->rsa.qlen);
    }
    br_hkdf_flip(&h);
    (void)br_hkdf_produce(&h, label, sizeof label - 1, out, 32);
    opc__mem_wipe(&h, sizeof h);
}

/* A wrapped key, 88 bytes:
       0  under what: 1 (1 a password, 2 the private key)     8  salt, 32 random bytes
       1  1 (ChaCha20-Poly1305), 2 zero                      40  the key, encrypted, 32
       4  iterations: 4 (2: 0)                               72  tag, 16
   It is encrypted under PBKDF2-HMAC-SHA-256 of the password, or HKDF-SHA-256 of the secret above
   with the info "opcomms log, data key", each with that salt. The nonce is zero: no salt comes
   twice. The tag also covers the first 40 bytes and the hash of the public key. */
#define OPC__SEAL_WRAPPED 88u
enum { OPC__SEAL_BY_PASSWORD = 1, OPC__SEAL_BY_KEY = 2 };

/* The key that encrypts the wrapped one at w, whose first 40 bytes are known. */
OPC__FN void opc__seal_wrap_key(const uint8_t *w, const uint8_t *secret, size_t len,
                                uint8_t key[32]) {
    static const char label[] = "opcomms log, data key";
    if (w[0] == OPC__SEAL_BY_PASSWORD) {
        opc__seal_derive((const char *)secret, len, w + 8, 32, opc__buf_be32(w + 4), key);
    } else {
        opc__seal_hkdf(w + 8, 32, secret, len, label, sizeof label - 1, key, 32);
    }
}

/* Can this version read it, and does it ask for no more work than is bearable? */
OPC__FN int opc__seal_wrap_known(const uint8_t w[OPC__SEAL_WRAPPED], uint32_t iterations_max) {
    uint32_t n = opc__buf_be32(w + 4);
    if (w[1] != 1 || w[2] != 0 || w[3] != 0) return 0;
    if (w[0] == OPC__SEAL_BY_KEY) return n == 0;
    return w[0] == OPC__SEAL_BY_PASSWORD && n > 0 && n <= iterations_max;
}

/* `secret`: the password, or the 32 bytes of opc__seal_secret. iterations 0: that. */
OPC__FN opcomms_err opc__seal_wrap(const opcomms_platform *plat, const opc__seal_cipher *c,
                                   const uint8_t *secret, size_t len, uint32_t iterations,
                                   const uint8_t hash[32], const uint8_t data_key[32],
                                   uint8_t w[OPC__SEAL_WRAPPED]) {
    static const uint8_t nonce[12] = {0};
    uint8_t key[32], ad[72];
    OPCOMMS_ASSERT(iterations <= OPC__SEAL_ITERATIONS_MAX);
    memset(w, 0, OPC__SEAL_WRAPPED);
    w[0] = iterations > 0 ? OPC__SEAL_BY_PASSWORD : OPC__SEAL_BY_KEY;
    w[1] = 1;
    opc__buf_put32(w + 4, iterations);
    if (plat->random(plat->user, w + 8, 32) != OPCOMMS_OK) return OPCOMMS_E_RANDOM;
    memcpy(ad, w, 40);
    memcpy(ad + 40, hash, 32);
    opc__seal_wrap_key(w, secret, len, key);
    memcpy(w + 40, data_key, 32);
    opc__seal_encrypt(c, key, nonce, ad, sizeof ad, w + 40, 32, w + 72);
    opc__mem_wipe(key, sizeof key);
    return OPCOMMS_OK;
}

/* OPCOMMS_E_PASSWORD: another secret. */
OPC__FN opcomms_err opc__seal_unwrap(const opc__seal_cipher *c, const uint8_t *secret, size_t len,
                                     const uint8_t hash[32], const uint8_t w[OPC__SEAL_WRAPPED],
                                     uint8_t data_key[32]) {
    static const uint8_t nonce[12] = {0};
    uint8_t key[32], ad[72];
    int right;
    memcpy(ad, w, 40);
    memcpy(ad + 40, hash, 32);
    opc__seal_wrap_key(w, secret, len, key);
    memcpy(data_key, w + 40, 32);
    right = opc__seal_decrypt(c, key, nonce, ad, sizeof ad, data_key, 32, w + 72);
    opc__mem_wipe(key, sizeof key);
    return right ? OPCOMMS_OK : OPCOMMS_E_PASSWORD;
}

/* >>tls ==== L2 ==== TLS 1.2 by BearSSL, both roles, mutual, without sockets or clock */

#define OPC__TLS_OUT_BYTES 4181u /* output buffer: a record of 4 096 bytes and its overhead */
#define OPC__TLS_AHEAD_BYTES 1024u /* a message of 64 bytes and its answer fit */
#define OPC__TLS_LENT_BYTES 65536u /* what is lent: for so much the system is called once */
#define OPC__TLS_DAY0 719528u    /* 1970-01-01 in BearSSL's days since year 0 */
#define OPC__TLS_FIXED_DAY 20089u /* 2025-01-01, at which the well-known hierarchy is validated */

/* Asked inside the handshake: 1 admits the key. */
typedef int (*opc__tls_may)(void *user, const uint8_t hash[32]);

/* One per peer; not changed after opc__tls_ctx_init; shared by all its connections. */
typedef struct opc__tls_ctx {
    const opc__key *key;
    uint8_t leaf[OPC__CERT_MAX];
    br_x509_certificate chain;
    uint8_t dn[sizeof OPC__CERT_CA_DN];
    uint8_t ca_n[512];
    uint8_t ca_e[8];
    uint8_t ca_q[97];
    br_x509_trust_anchor anchor;
    int own_ca;
    unsigned ca_key_type; /* BR_KEYTYPE_RSA or _EC: what signs our leaf */
    uint16_t suites[4];
    int native; /* as a server: the native protocol is chosen when it is offered */
} opc__tls_ctx;

#define OPC__TLS_ALPN "opcomms/1" /* RFC 7301 */

struct opc__tls;

/* A session that may be resumed (RFC 5246 7.3): what the engine keeps, and for whom. It is made
   only after both Finished messages, and serves nobody but the key and address it was made with. */
typedef struct opc__session {
    br_ssl_session_parameters p;
    uint8_t hash[32];
    opcomms_address address;
    uint64_t until_us; /* 0: none */
    uint64_t list;     /* client: generation of the allow list when it was made */
} opc__session;

/* Sessions, one for each key and address; the oldest gives way. */
typedef struct opc__sessions {
    opc__session *s;
    uint32_t count;
} opc__sessions;

#define OPC__TLS_SESSION_US 3600000000u /* an hour */

/* The engine's view of them. */
typedef struct opc__tls_cache {
    const br_ssl_session_cache_class *vtable;
    struct opc__tls *owner;
} opc__tls_cache;

/* Our verifier: the chain is checked by BearSSL's, the key by us. */
typedef struct opc__tls_x509 {
    const br_x509_class *vtable;
    br_x509_minimal_context inner;
    struct opc__tls *owner;
    uint32_t certs;
    uint32_t leaf_len; /* of the first certificate, kept for opc__cert_leaf_fits */
    uint8_t leaf[1024]; /* enough for all that is signed in a leaf; the signature may be cut */
} opc__tls_x509;

typedef struct opc__tls {
    union {
        br_ssl_client_context client;
        br_ssl_server_context server;
    } u;
    br_ssl_engine_context *eng;
    opc__tls_x509 x509;
    opc__tls_may may;
    void *user;
    int is_server;
    int pinned;
    uint8_t expected[32];
    uint8_t peer[32];
    int have_peer;  /* the chain was accepted and the key admitted */
    int ready;      /* and the handshake is finished: possession is proved */
    int spoke;      /* our first flight was made */
    int closing;
    opcomms_err refusal;
    opc__tls_cache cache; /* server */
    opc__sessions *sessions;
    opcomms_address address;
    uint64_t now_us;  /* when the connection was made */
    uint64_t offered; /* client: until when the session is good that was offered; 0: none was */
    int chain_seen;   /* the peer has shown a certificate: this is no resumption */
    /* The engine asks for the five bytes of a record's header, then for the record. What is read
       ahead saves the second system call; nothing more is read before the engine has it all. */
    int in_ahead; /* opc__tls_in has handed out `ahead`, or `lent_in` */
    uint32_t ahead_at;
    uint32_t ahead_len;
    /* Lent by the owner for many records at a time; NULL: none is. */
    uint8_t *lent_in;
    uint8_t *lent_out; /* records that are complete, in front of the engine's */
    uint32_t lent_at;
    uint32_t lent_len;
    uint8_t ahead[OPC__TLS_AHEAD_BYTES];
    uint8_t in[BR_SSL_BUFSIZE_INPUT];
    uint8_t out[OPC__TLS_OUT_BYTES];
} opc__tls;
OPC__STATIC_ASSERT(tls_size, sizeof(opc__tls) <= 30 * 1024);

/* ---- the verifier ---- */

OPC__FN void opc__tls_start_chain(const br_x509_class **ctx, const char *server_name) {
    opc__tls_x509 *x = (opc__tls_x509 *)(void *)ctx;
    (void)server_name; /* names identify nobody here */
    x->owner->have_peer = 0; /* a session that was found did not do after all */
    x->owner->chain_seen = 1;
    x->certs = 0;
    x->leaf_len = 0;
    x->inner.vtable->start_chain(&x->inner.vtable, NULL);
}
OPC__FN void opc__tls_start_cert(const br_x509_class **ctx, uint32_t length) {
    opc__tls_x509 *x = (opc__tls_x509 *)(void *)ctx;
    x->certs++;
    x->inner.vtable->start_cert(&x->inner.vtable, length);
}
OPC__FN void opc__tls_append(const br_x509_class **ctx, const unsigned char *buf, size_t len) {
    opc__tls_x509 *x = (opc__tls_x509 *)(void *)ctx;
    if (x->certs == 1 && x->leaf_len < sizeof x->leaf) {
        size_t n = sizeof x->leaf - x->leaf_len;
        if (n > len) n = len;
        memcpy(x->leaf + x->leaf_len, buf, n);
        x->leaf_len += (uint32_t)n;
    }
    x->inner.vtable->append(&x->inner.vtable, buf, len);
}
OPC__FN void opc__tls_end_cert(const br_x509_class **ctx) {
    opc__tls_x509 *x = (opc__tls_x509 *)(void *)ctx;
    x->inner.vtable->end_cert(&x->inner.vtable);
}
OPC__FN unsigned opc__tls_end_chain(const br_x509_class **ctx) {
    opc__tls_x509 *x = (opc__tls_x509 *)(void *)ctx;
    opc__tls *t = x->owner;
    unsigned usages = 0;
    const br_x509_pkey *pk;
    uint8_t hash[32];
    unsigned rc = x->inner.vtable->end_chain(&x->inner.vtable);
    if (rc != 0) return rc;
    if (!opc__cert_leaf_fits(x->leaf, x->leaf_len, !t->is_server)) {
        t->refusal = OPCOMMS_E_CERT;
        return BR_ERR_X509_FORBIDDEN_KEY_USAGE;
    }
    pk = x->inner.vtable->get_pkey(&x->inner.vtable, &usages);
    if (pk == NULL || opc__key_spki_hash_x509(pk, hash) != OPCOMMS_OK) {
        t->refusal = OPCOMMS_E_CERT;
        return BR_ERR_X509_UNSUPPORTED;
    }
    if (t->pinned && !opc__str_equal_ct(hash, t->expected, 32)) {
        t->refusal = OPCOMMS_E_IDENTITY;
        return BR_ERR_X509_NOT_TRUSTED;
    }
    if (!t->may(t->user, hash)) {
        t->refusal = OPCOMMS_E_NOT_ALLOWED;
        return BR_ERR_X509_NOT_TRUSTED;
    }
    memcpy(t->peer, hash, 32);
    t->have_peer = 1;
    return 0;
}
OPC__FN const br_x509_pkey *opc__tls_get_pkey(const br_x509_class *const *ctx, unsigned *usages) {
    const opc__tls_x509 *x = (const opc__tls_x509 *)(const void *)ctx;
    const br_x509_pkey *pk = x->inner.vtable->get_pkey(&x->inner.vtable, usages);
    /* The reference does not look at keyUsage; our suites use the key for signatures only. */
    if (usages != NULL) *usages = BR_KEYTYPE_SIGN;
    return pk;
}

/* BearSSL hands its key-exchange curves to the ECDSA verifier; ours keeps P-256 and P-384. */
OPC__FN uint32_t opc__tls_ecdsa_vrfy(const br_ec_impl *impl, const void *hash, size_t hash_len,
                                     const br_ec_public_key *pk, const void *sig, size_t sig_len) {
    (void)impl;
    return br_ecdsa_vrfy_asn1_get_default()(br_ec_get_default(), hash, hash_len, pk, sig, sig_len);
}

/* ---- one per peer ---- */

OPC__FN opcomms_err opc__tls_ctx_init(opc__tls_ctx *c, const opc__key *key, const opc__key *ca,
                                      int own_ca, opcomms_error *err) {
    size_t len = 0;
    opcomms_err rc;
    memset(c, 0, sizeof *c);
    rc = opc__cert_leaf(key, ca, c->leaf, sizeof c->leaf, &len, err);
    if (rc != OPCOMMS_OK) return rc;
    c->key = key;
    c->chain.data = c->leaf;
    c->chain.data_len = len;
    c->own_ca = own_ca;
    memcpy(c->dn, OPC__CERT_CA_DN, sizeof c->dn);
    c->anchor.dn.data = c->dn;
    c->anchor.dn.len = sizeof c->dn;
    c->anchor.flags = BR_X509_TA_CA;
    if (ca->kind == OPC__KEY_RSA) {
        OPCOMMS_ASSERT(ca->n_len <= sizeof c->ca_n);
        OPCOMMS_ASSERT(ca->e_len <= sizeof c->ca_e);
        memcpy(c->ca_n, ca->n, ca->n_len);
        memcpy(c->ca_e, ca->e, ca->e_len);
        c->anchor.pkey.key_type = BR_KEYTYPE_RSA;
        c->anchor.pkey.key.rsa.n = c->ca_n;
        c->anchor.pkey.key.rsa.nlen = ca->n_len;
        c->anchor.pkey.key.rsa.e = c->ca_e;
        c->anchor.pkey.key.rsa.elen = ca->e_len;
        c->ca_key_type = BR_KEYTYPE_RSA;
    } else {
        memcpy(c->ca_q, ca->q, ca->q_len);
        c->anchor.pkey.key_type = BR_KEYTYPE_EC;
        c->anchor.pkey.key.ec.curve = ca->ec.curve;
        c->anchor.pkey.key.ec.q = c->ca_q;
        c->anchor.pkey.key.ec.qlen = ca->q_len;
        c->ca_key_type = BR_KEYTYPE_EC;
    }
    if (br_aes_x86ni_ctr_get_vtable() != NULL) { /* AES in hardware beats ChaCha20, else not */
        c->suites[0] = BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
        c->suites[1] = BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256;
        c->suites[2] = BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256;
        c->suites[3] = BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256;
    } else {
        c->suites[0] = BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256;
        c->suites[1] = BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256;
        c->suites[2] = BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
        c->suites[3] = BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256;
    }
    return OPCOMMS_OK;
}

/* ---- one per connection ---- */

OPC__FN void opc__tls_x509_init(opc__tls *t, const opc__tls_ctx *c, int64_t wall_s) {
    static const br_x509_class verifier = {
        sizeof(opc__tls_x509), opc__tls_start_chain, opc__tls_start_cert, opc__tls_append,
        opc__tls_end_cert,     opc__tls_end_chain,   opc__tls_get_pkey,
    };
    br_x509_minimal_context *x = &t->x509.inner;
    uint32_t day = OPC__TLS_FIXED_DAY, second = 0;
    if (c->own_ca) { /* no clock leaves day 0, at which nothing is valid */
        day = wall_s > 0 ? (uint32_t)(wall_s / 86400) : 0;
        second = wall_s > 0 ? (uint32_t)(wall_s % 86400) : 0;
    }
    t->x509.vtable = &verifier;
    t->x509.owner = t;
    br_x509_minimal_init(x, &br_sha256_vtable, &c->anchor, 1);
    br_x509_minimal_set_hash(x, br_sha256_ID, &br_sha256_vtable);
    br_x509_minimal_set_hash(x, br_sha384_ID, &br_sha384_vtable);
    br_x509_minimal_set_hash(x, br_sha512_ID, &br_sha512_vtable);
    br_x509_minimal_set_rsa(x, br_rsa_pkcs1_vrfy_get_default());
    br_x509_minimal_set_ecdsa(x, br_ec_get_default(), br_ecdsa_vrfy_asn1_get_default());
    br_x509_minimal_set_time(x, day + OPC__TLS_DAY0, second);
}

OPC__FN void opc__tls_engine_init(opc__tls *t, const opc__tls_ctx *c, const uint8_t entropy[32]) {
    br_ssl_engine_context *e = t->eng;
    br_ssl_engine_set_versions(e, BR_TLS12, BR_TLS12);
    br_ssl_engine_set_suites(e, c->suites, 4);
    br_ssl_engine_set_hash(e, br_sha256_ID, &br_sha256_vtable);
    br_ssl_engine_set_hash(e, br_sha384_ID, &br_sha384_vtable);
    br_ssl_engine_set_hash(e, br_sha512_ID, &br_sha512_vtable);
    br_ssl_engine_set_prf_sha256(e, &br_tls12_sha256_prf);
    br_ssl_engine_set_default_aes_gcm(e);
    br_ssl_engine_set_default_chapol(e);
    br_ssl_engine_set_rsavrfy(e, br_rsa_pkcs1_vrfy_get_default());
    br_ssl_engine_set_ecdsa(e, opc__tls_ecdsa_vrfy);
    br_ssl_engine_set_x509(e, &t->x509.vtable);
    br_ssl_engine_set_buffers_bidi(e, t->in, sizeof t->in, t->out, sizeof t->out);
    br_ssl_engine_inject_entropy(e, entropy, 32);
}

/* Without an answer to it both sides go on, and speak tarpc. */
OPC__FN void opc__tls_offer(opc__tls *t) {
    static const char *const names[] = {OPC__TLS_ALPN};
    br_ssl_engine_set_protocol_names(t->eng, (const char **)(uintptr_t)names, 1);
}

/* native: the native protocol is offered. */
OPC__FN void opc__tls_client(opc__tls *t, const opc__tls_ctx *c, const uint8_t expected[32],
                             opc__tls_may may, void *user, const uint8_t entropy[32],
                             int64_t wall_s, int native) {
    br_ssl_client_context *cc = &t->u.client;
    memset(t, 0, offsetof(opc__tls, in));
    t->may = may;
    t->user = user;
    t->pinned = 1;
    memcpy(t->expected, expected, 32);
    br_ssl_client_zero(cc);
    t->eng = &cc->eng;
    opc__tls_x509_init(t, c, wall_s);
    opc__tls_engine_init(t, c, entropy);
    /* Curves are listed by rising number, and X25519 (a third of P-256's time) has the highest:
       offering it alone makes a server take it. Every peer of this protocol knows it. */
    br_ssl_engine_set_ec(t->eng, &br_ec_c25519_m31);
    br_ssl_client_set_rsapub(cc, br_rsa_public_get_default());
    if (c->key->kind == OPC__KEY_RSA) {
        br_ssl_client_set_single_rsa(cc, &c->chain, 1, &c->key->rsa,
                                     br_rsa_pkcs1_sign_get_default());
    } else {
        br_ssl_client_set_single_ec(cc, &c->chain, 1, &c->key->ec, BR_KEYTYPE_SIGN, c->ca_key_type,
                                    br_ec_get_default(), br_ecdsa_sign_asn1_get_default());
    }
    br_ssl_engine_add_flags(t->eng, BR_OPT_NO_RENEGOTIATION);
    if (native) opc__tls_offer(t);
    if (!br_ssl_client_reset(cc, "localhost", 0)) t->refusal = OPCOMMS_E_RANDOM;
}

OPC__FN void opc__tls_server(opc__tls *t, const opc__tls_ctx *c, opc__tls_may may, void *user,
                             const uint8_t entropy[32], int64_t wall_s) {
    br_ssl_server_context *sc = &t->u.server;
    memset(t, 0, offsetof(opc__tls, in));
    t->may = may;
    t->user = user;
    t->is_server = 1;
    br_ssl_server_zero(sc);
    t->eng = &sc->eng;
    opc__tls_x509_init(t, c, wall_s);
    opc__tls_engine_init(t, c, entropy);
    br_ssl_engine_set_ec(t->eng, br_ec_get_default());
    if (c->key->kind == OPC__KEY_RSA) {
        br_ssl_server_set_single_rsa(sc, &c->chain, 1, &c->key->rsa, BR_KEYTYPE_SIGN,
                                     br_rsa_private_get_default(), br_rsa_pkcs1_sign_get_default());
    } else {
        br_ssl_server_set_single_ec(sc, &c->chain, 1, &c->key->ec, BR_KEYTYPE_SIGN, c->ca_key_type,
                                    br_ec_get_default(), br_ecdsa_sign_asn1_get_default());
    }
    br_ssl_server_set_trust_anchor_names_alt(sc, &c->anchor, 1); /* demands a certificate */
    br_ssl_engine_add_flags(t->eng, BR_OPT_NO_RENEGOTIATION | BR_OPT_ENFORCE_SERVER_PREFERENCES);
    if (c->native) opc__tls_offer(t);
    if (!br_ssl_server_reset(sc)) t->refusal = OPCOMMS_E_RANDOM;
}

OPC__FN void opc__tls_wipe(opc__tls *t) { opc__mem_wipe(t, sizeof *t); }

/* ---- resumption ---- */

OPC__FN void opc__session_wipe(opc__session *s) { opc__mem_wipe(s, sizeof *s); }

OPC__FN void opc__sessions_wipe(opc__sessions *all) {
    if (all->s != NULL) opc__mem_wipe(all->s, all->count * sizeof *all->s);
}

OPC__FN int opc__session_same_ip(const opcomms_address *a, const opcomms_address *b) {
    return a->family == b->family && memcmp(a->ip, b->ip, sizeof a->ip) == 0;
}

/* Where a session with this key and address lies, or else where it may be put. `ports`: the ports
   have to be the same, too. */
OPC__FN opc__session *opc__sessions_place(opc__sessions *all, const uint8_t hash[32],
                                          const opcomms_address *address, int ports) {
    opc__session *oldest = &all->s[0];
    uint32_t i;
    OPCOMMS_ASSERT(all->count > 0);
    for (i = 0; i < all->count; i++) {
        opc__session *s = &all->s[i];
        if (s->until_us != 0 && opc__session_same_ip(&s->address, address) &&
            (!ports || s->address.port == address->port) && memcmp(s->hash, hash, 32) == 0) {
            return s;
        }
        if (s->until_us < oldest->until_us) oldest = s;
    }
    return oldest;
}

/* Called by the engine after the client's Finished: possession is proved. */
OPC__FN void opc__tls_cache_save(const br_ssl_session_cache_class **ctx, br_ssl_server_context *sc,
                                 const br_ssl_session_parameters *params) {
    opc__tls *t = ((opc__tls_cache *)(void *)ctx)->owner;
    opc__session *slot;
    (void)sc;
    if (!t->have_peer || params->session_id_len != sizeof params->session_id) return;
    slot = opc__sessions_place(t->sessions, t->peer, &t->address, 0);
    slot->p = *params;
    memcpy(slot->hash, t->peer, 32);
    slot->address = t->address;
    slot->until_us = t->now_us + OPC__TLS_SESSION_US;
}

/* Called by the engine for a ClientHello's session id. 0: unknown, a full handshake follows. */
OPC__FN int opc__tls_cache_load(const br_ssl_session_cache_class **ctx, br_ssl_server_context *sc,
                                br_ssl_session_parameters *params) {
    opc__tls *t = ((opc__tls_cache *)(void *)ctx)->owner;
    uint32_t i;
    (void)sc;
    if (params->session_id_len != sizeof params->session_id) return 0;
    for (i = 0; i < t->sessions->count; i++) {
        opc__session *s = &t->sessions->s[i];
        if (s->until_us == 0 ||
            memcmp(s->p.session_id, params->session_id, sizeof params->session_id) != 0) {
            continue;
        }
        if (t->now_us >= s->until_us) {
            opc__session_wipe(s);
            return 0;
        }
        if (!opc__session_same_ip(&s->address, &t->address) || !t->may(t->user, s->hash)) return 0;
        *params = s->p;
        memcpy(t->peer, s->hash, 32);
        t->have_peer = 1;
        return 1;
    }
    return 0;
}

/* After opc__tls_server: sessions of `all`, which outlives the connection, may be resumed. */
OPC__FN void opc__tls_server_resumes(opc__tls *t, opc__sessions *all, const opcomms_address *from,
                                     uint64_t now_us) {
    static const br_ssl_session_cache_class cache = {sizeof(opc__tls_cache), opc__tls_cache_save,
                                                     opc__tls_cache_load};
    OPCOMMS_ASSERT(t->is_server);
    OPCOMMS_ASSERT(all->count > 0);
    t->cache.vtable = &cache;
    t->cache.owner = t;
    t->sessions = all;
    t->address = *from;
    t->now_us = now_us;
    br_ssl_server_set_cache(&t->u.server, &t->cache.vtable);
}

/* After opc__tls_client: offers a session of this very key. */
OPC__FN void opc__tls_client_resumes(opc__tls *t, const opc__session *s, uint64_t now_us) {
    OPCOMMS_ASSERT(!t->is_server);
    if (now_us >= s->until_us || !opc__str_equal_ct(s->hash, t->expected, 32)) return;
    br_ssl_engine_set_session_parameters(t->eng, &s->p);
    if (!br_ssl_client_reset(&t->u.client, "localhost", 1)) t->refusal = OPCOMMS_E_RANDOM;
    t->offered = s->until_us;
}

/* The session of a finished handshake, to be offered next time. */
OPC__FN void opc__tls_client_session(const opc__tls *t, opc__session *out, uint64_t now_us) {
    OPCOMMS_ASSERT(t->ready);
    opc__session_wipe(out);
    br_ssl_engine_get_session_parameters(t->eng, &out->p);
    memcpy(out->hash, t->peer, 32);
    if (out->p.session_id_len == 0) return;
    /* Resuming does not prolong it. */
    out->until_us = t->chain_seen ? now_us + OPC__TLS_SESSION_US : t->offered;
}

OPC__FN int opc__tls_resumed(const opc__tls *t) { return t->ready && !t->chain_seen; }

OPC__FN int opc__tls_closed(const opc__tls *t) {
    return t->eng == NULL || t->refusal != OPCOMMS_OK ||
           br_ssl_engine_current_state(t->eng) == BR_SSL_CLOSED ||
           br_ssl_engine_current_state(t->eng) == 0;
}

/* Gives the engine what was read ahead, as far as it takes it. */
OPC__FN void opc__tls_feed(opc__tls *t) {
    const uint8_t *ahead = t->lent_in != NULL ? t->lent_in : t->ahead;
    while (t->ahead_at < t->ahead_len) {
        size_t room = 0, n = t->ahead_len - t->ahead_at;
        uint8_t *p = br_ssl_engine_recvrec_buf(t->eng, &room);
        if (p == NULL || room == 0) return;
        if (n > room) n = room;
        memcpy(p, ahead + t->ahead_at, n);
        t->ahead_at += (uint32_t)n;
        br_ssl_engine_recvrec_ack(t->eng, n);
    }
}

/* After every movement: notices the end of the handshake; throws away data that comes after we
   began to close, without which the engine would never finish. */
OPC__FN void opc__tls_settle(opc__tls *t) {
    int finished;
    opc__tls_feed(t);
    finished = (br_ssl_engine_current_state(t->eng) & BR_SSL_SENDAPP) != 0;
    if (!t->ready && finished && t->offered != 0 && !t->chain_seen) {
        /* Resumed: no certificate came; whoever answered holds the secret that was agreed with the
           expected key. Whether that key is still admitted is asked again. */
        if (t->may(t->user, t->expected)) {
            memcpy(t->peer, t->expected, 32);
            t->have_peer = 1;
        } else {
            t->refusal = OPCOMMS_E_NOT_ALLOWED;
        }
    }
    if (!t->ready && t->have_peer && finished) t->ready = 1;
    while (t->closing) {
        size_t len = 0;
        if (br_ssl_engine_recvapp_buf(t->eng, &len) == NULL || len == 0) break;
        br_ssl_engine_recvapp_ack(t->eng, len);
        opc__tls_feed(t);
    }
}

OPC__FN uint8_t *opc__tls_in(opc__tls *t, size_t *room) {
    uint8_t *p = NULL;
    *room = 0;
    t->in_ahead = 0;
    if (t->eng == NULL || t->ahead_at < t->ahead_len) return NULL;
    p = br_ssl_engine_recvrec_buf(t->eng, room);
    if (p == NULL || (t->lent_in == NULL && *room >= sizeof t->ahead)) return p;
    t->in_ahead = 1;
    *room = t->lent_in != NULL ? OPC__TLS_LENT_BYTES : sizeof t->ahead;
    return t->lent_in != NULL ? t->lent_in : t->ahead;
}
OPC__FN void opc__tls_in_done(opc__tls *t, size_t n) {
    if (t->in_ahead) {
        OPCOMMS_ASSERT(n <= (t->lent_in != NULL ? OPC__TLS_LENT_BYTES : sizeof t->ahead));
        t->ahead_at = 0;
        t->ahead_len = (uint32_t)n;
    } else if (n > 0) {
        br_ssl_engine_recvrec_ack(t->eng, n);
    }
    opc__tls_settle(t);
}
OPC__FN const uint8_t *opc__tls_out(opc__tls *t, size_t *len) {
    if (t->lent_at < t->lent_len) {
        *len = t->lent_len - t->lent_at;
        return t->lent_out + t->lent_at;
    }
    return t->eng == NULL ? NULL : br_ssl_engine_sendrec_buf(t->eng, len);
}
OPC__FN void opc__tls_out_done(opc__tls *t, size_t n) {
    if (t->lent_at < t->lent_len) {
        OPCOMMS_ASSERT(n <= t->lent_len - t->lent_at);
        t->lent_at += (uint32_t)n;
        if (t->lent_at == t->lent_len) t->lent_at = t->lent_len = 0;
    } else if (n > 0) {
        br_ssl_engine_sendrec_ack(t->eng, n);
        t->spoke = 1;
    }
    opc__tls_settle(t);
}

/* Application data only once both proofs are in. */
OPC__FN const uint8_t *opc__tls_read(opc__tls *t, size_t *len) {
    return t->ready && !t->closing ? br_ssl_engine_recvapp_buf(t->eng, len) : NULL;
}
OPC__FN void opc__tls_read_done(opc__tls *t, size_t n) {
    if (n == 0) return;
    br_ssl_engine_recvapp_ack(t->eng, n);
    opc__tls_feed(t);
}
OPC__FN uint8_t *opc__tls_write(opc__tls *t, size_t *room) {
    return t->ready && !t->closing ? br_ssl_engine_sendapp_buf(t->eng, room) : NULL;
}
OPC__FN void opc__tls_write_done(opc__tls *t, size_t n) {
    if (n > 0) br_ssl_engine_sendapp_ack(t->eng, n);
}
/* What was written becomes a record. With a buffer that is lent it makes room for the next one. */
OPC__FN void opc__tls_flush(opc__tls *t) {
    size_t n = 0;
    const uint8_t *p;
    br_ssl_engine_flush(t->eng, 0);
    if (t->lent_out == NULL) return;
    while ((p = br_ssl_engine_sendrec_buf(t->eng, &n)) != NULL && n > 0) {
        if (n > OPC__TLS_LENT_BYTES - t->lent_len) break;
        memcpy(t->lent_out + t->lent_len, p, n);
        t->lent_len += (uint32_t)n;
        br_ssl_engine_sendrec_ack(t->eng, n);
    }
}

/* May a buffer for what comes in, or goes out, be lent or taken back now? Not while anything lies
   in the one there is. */
OPC__FN int opc__tls_in_empty(const opc__tls *t) { return t->ahead_at == t->ahead_len; }
OPC__FN int opc__tls_out_empty(const opc__tls *t) { return t->lent_at == t->lent_len; }

OPC__FN int opc__tls_ready(const opc__tls *t) { return t->ready; }

/* Both sides have agreed on the native protocol. */
OPC__FN int opc__tls_native(const opc__tls *t) {
    const char *name = t->ready ? br_ssl_engine_get_selected_protocol(t->eng) : NULL;
    return name != NULL && strcmp(name, OPC__TLS_ALPN) == 0;
}
OPC__FN const uint8_t *opc__tls_peer(const opc__tls *t) { return t->ready ? t->peer : NULL; }

/* May the next input cost a private key operation? */
OPC__FN int opc__tls_will_sign(const opc__tls *t) {
    return t->is_server ? !t->spoke : !t->ready;
}

#define OPC__TLS_ALERT 7u

/* The engine refuses a certificate, or the lack of one, without a word. This is the word: a fatal
   alert (RFC 5246 7.2), in the clear because neither side has changed its cipher yet. 0: there is
   nothing to say. */
OPC__FN size_t opc__tls_alert(const opc__tls *t, uint8_t out[OPC__TLS_ALERT]) {
    static const uint8_t head[6] = {21, 3, 3, 0, 2, 2};
    int code = t->eng == NULL || t->ready ? 0 : br_ssl_engine_last_error(t->eng);
    if (code != BR_ERR_NO_CLIENT_AUTH && (code < 32 || code >= 64)) return 0;
    memcpy(out, head, sizeof head);
    if (t->refusal == OPCOMMS_E_IDENTITY || t->refusal == OPCOMMS_E_NOT_ALLOWED) {
        out[6] = 46; /* certificate_unknown, as the reference answers an unlisted key */
    } else if (code == BR_ERR_NO_CLIENT_AUTH) {
        out[6] = 40; /* handshake_failure: RFC 5246 7.4.6 */
    } else if (t->refusal != OPCOMMS_OK) {
        out[6] = 43; /* unsupported_certificate: its key, version or purpose */
    } else if (code == BR_ERR_X509_EXPIRED) {
        out[6] = 45;
    } else if (code == BR_ERR_X509_NOT_TRUSTED) {
        out[6] = 48;
    } else if (code == BR_ERR_X509_BAD_SIGNATURE) {
        out[6] = 51;
    } else {
        out[6] = 42;
    }
    return OPC__TLS_ALERT;
}

OPC__FN void opc__tls_close(opc__tls *t) {
    if (t->closing || t->eng == NULL) return;
    t->closing = 1;
    opc__tls_settle(t);
    br_ssl_engine_close(t->eng);
}

OPC__FN opcomms_err opc__tls_error(const opc__tls *t, int *tls_code) {
    int code;
    if (t->eng == NULL) return OPCOMMS_E_CLOSED;
    code = br_ssl_engine_last_error(t->eng);
    *tls_code = code;
    if (t->refusal != OPCOMMS_OK) return t->refusal;
    if (code == 0) return opc__tls_closed(t) ? OPCOMMS_E_CLOSED : OPCOMMS_OK;
    if (code == BR_ERR_RECV_FATAL_ALERT + 46) return OPCOMMS_E_NOT_ALLOWED;
    if (code >= 32 && code < 64) return OPCOMMS_E_CERT;
    return OPCOMMS_E_TLS;
}

/* >>store ==== L2 ==== what keeps messages: the interface of log and memory */

#define OPC__FRAG_BYTES 16384u
#define OPC__MSG_TEXT 1u /* the payload is text, else bytes */
#define OPC__MSG_UNCERTAIN 2u /* it may have come before */

/* One opening of a log: its counter, and random bits that tell two copies of one log apart.
   counter 0: a store that ends with its peer. */
typedef struct opc__epoch {
    uint64_t counter;
    uint64_t random;
} opc__epoch;

OPC__FN int opc__epoch_equal(const opc__epoch *a, const opc__epoch *b) {
    return a->counter == b->counter && a->random == b->random;
}

/* What a stored message is. */
enum {
    OPC__KIND_IN = 0,  /* received, unread */
    OPC__KIND_OUT = 1, /* queued for sending */
    OPC__KIND_DEAD = 2 /* was queued; a dead letter now */
};

/* How a received message was numbered by its sender. */
enum {
    OPC__STREAM_NONE = 0,  /* not at all: tarpc, or this process */
    OPC__STREAM_QUEUE = 1, /* from an outbox: ascending in order */
    OPC__STREAM_DIRECT = 2 /* by a call that waits: in any order within a window */
};

#define OPC__CONTEXT_MAX 256u
#define OPC__TRIED_NATIVE 1u
#define OPC__TRIED_TARPC 2u

/* How far a message has got at its receiver. */
enum { OPC__LEVEL_RECEIVED = 1, OPC__LEVEL_DURABLE = 2, OPC__LEVEL_CONSUMED = 3 };

typedef struct opc__msg_meta {
    uint8_t kind;    /* OPC__KIND_IN or _OUT when it is stored; when it is read also _DEAD */
    uint8_t from[32]; /* IN: whose key; OUT: unused */
    uint8_t from_id;
    uint8_t dest_id;
    uint8_t flags;
    uint32_t dest_len;
    const uint8_t *dest; /* opaque, at most 1 024 bytes */
    uint64_t uid;
    uint64_t bytes;
    uint64_t wire_bytes; /* characters when rendered into a JSON string */
    int64_t time_s;
    /* IN: its number among those of the same sender, destination, kind of stream and epoch.
       OUT: the epoch in which it was queued; its number is its uid. */
    uint8_t stream;
    opc__epoch epoch;
    uint64_t number;
    /* OUT and DEAD */
    uint8_t server[32];      /* the key to deliver to */
    opcomms_address address; /* family 0: on a connection which that peer makes */
    uint8_t level;           /* the acknowledgement that was asked for, see OPC__LEVEL_ */
    uint8_t options;         /* opaque here */
    uint32_t attempts_max;   /* 0: no limit */
    int64_t expires_s;       /* 0: never */
    uint32_t context_len;
    const uint8_t *context; /* of the caller, at most OPC__CONTEXT_MAX bytes */
    /* OUT and DEAD: what became of it so far */
    uint8_t tried; /* OPC__TRIED_ bits */
    uint32_t attempts;
    int32_t code;   /* of the last failure, an opcomms_err */
    int64_t dead_s; /* DEAD: since when */
} opc__msg_meta;

/* A failed attempt to deliver, or the last one. */
typedef struct opc__try {
    uint64_t uid;
    uint32_t attempts;
    int32_t code;
    uint8_t tried;
    int dead; /* it is a dead letter from now on */
    int64_t time_s;
} opc__try;

enum { OPC__DONE_DELIVERED = 1, OPC__DONE_CANCELLED = 2, OPC__DONE_TAKEN = 3 };

/* Small records of the owner, opaque to a store; the log's format describes them. */
enum { OPC__NOTE_SEEN = 9, OPC__NOTE_STATE = 10, OPC__NOTE_PEER = 13, OPC__NOTE_OPENED = 14 };
#define OPC__NOTE_MAX 4352u

typedef struct opc__store opc__store;

/* How much room there is. What is used and not live, compaction gives back, but for `notes`. */
typedef struct opc__space {
    uint64_t used;
    uint64_t limit;
    uint64_t live; /* messages that are not over */
} opc__space;

/* Everything but flush_run is called under the owner's lock. Positions grow with every append; an
   operation with position P is durable when durable() >= P. OPCOMMS_E_AGAIN: no room until a flush
   ends; nothing was consumed. */
typedef struct opc__store_class {
    size_t (*room)(opc__store *s);
    opcomms_err (*begin)(opc__store *s, uint32_t *put);
    opcomms_err (*data)(opc__store *s, uint32_t put, const uint8_t *p, size_t n);
    opcomms_err (*peek)(opc__store *s, uint32_t put, uint64_t offset, uint8_t *buf, size_t len,
                        size_t *got);
    opcomms_err (*commit)(opc__store *s, uint32_t put, const opc__msg_meta *meta, uint64_t *uid,
                          uint64_t *ref, uint64_t *position);
    void (*abort)(opc__store *s, uint32_t put);
    opcomms_err (*ack)(opc__store *s, uint64_t ref, uint64_t uid, uint64_t *position);
    /* dest has room for 1 024 bytes; context, for OPC__CONTEXT_MAX, may be NULL. What became of an
       OUT message is the owner's to remember: attempts, code and so on are zero here. */
    opcomms_err (*meta)(opc__store *s, uint64_t ref, opc__msg_meta *out, uint8_t *dest,
                        uint8_t *context);
    opcomms_err (*read)(opc__store *s, uint64_t ref, uint64_t offset, uint8_t *buf, size_t len,
                        size_t *got);
    uint64_t (*end)(opc__store *s);
    uint64_t (*written)(opc__store *s);
    uint64_t (*durable)(opc__store *s);
    opcomms_err (*write)(opc__store *s);       /* hand to the system now, without sync */
    opcomms_err (*flush_begin)(opc__store *s); /* seal; OPCOMMS_E_AGAIN: nothing, or one runs */
    opcomms_err (*ahead_begin)(opc__store *s); /* as flush_begin; prepares space, if it is time */
    opcomms_err (*flush_run)(opc__store *s);   /* without the lock: write and sync */
    opcomms_err (*flush_end)(opc__store *s, opcomms_err result);
    opcomms_err (*close)(opc__store *s);
    uint64_t (*bytes)(opc__store *s);
    /* The operations that follow, of at most `bytes` in all by opc__store_need, become one: all or
       none. Fragments of data belong not to them, nor may anything be written between. Commits
       come first: OPCOMMS_E_FULL is the answer to the first of them, or to none, and to a note only
       when it stands alone or first. OPCOMMS_E_LIMIT: more than one can hold. */
    opcomms_err (*hold)(opc__store *s, size_t bytes);
    /* A queued message or dead letter is over: OPC__DONE_. */
    opcomms_err (*done)(opc__store *s, uint64_t ref, uint64_t uid, int how, uint64_t *position);
    opcomms_err (*tried)(opc__store *s, const opc__try *t, uint64_t *position);
    opcomms_err (*note)(opc__store *s, unsigned type, const uint8_t *body, size_t n,
                        uint64_t *position);
    void (*epoch)(opc__store *s, opc__epoch *out);
    /* Compaction, for the time when nothing else is to do: one bounded piece of it. It begins by
       itself when that is worth the while; force: in any case. OPCOMMS_E_AGAIN: nothing to do now.
       *flush 1: a flush was begun, as by flush_begin; while the last one of a compaction runs,
       there is no room. Any other error: it was given up, the store is as good as before unless
       that is OPCOMMS_E_POISONED. */
    opcomms_err (*compact)(opc__store *s, int force, int *flush);
    void (*space)(opc__store *s, opc__space *out);
    /* Begins a copy of all that is live at `path`, where there must be nothing yet; `compact` does
       it. path NULL: OPCOMMS_E_AGAIN while that lasts, then what became of it: complete and synced,
       or removed; OPCOMMS_E_NOT_FOUND: none was begun. OPCOMMS_E_AGAIN for a path: not now. */
    opcomms_err (*backup)(opc__store *s, const char *path);
} opc__store_class;

struct opc__store {
    const opc__store_class *c;
};

/* All of n bytes of a message from `offset` on. */
OPC__FN opcomms_err opc__store_read_all(opc__store *s, uint64_t ref, uint64_t offset, uint8_t *buf,
                                        size_t n) {
    size_t at = 0;
    while (at < n) {
        size_t got = 0;
        opcomms_err rc = s->c->read(s, ref, offset + at, buf + at, n - at, &got);
        if (rc != OPCOMMS_OK) return rc;
        if (got == 0) return OPCOMMS_E_LOG_DAMAGED;
        at += got;
    }
    return OPCOMMS_OK;
}

/* What a store tells whoever owns it. All but `user` may be NULL. */
typedef struct opc__store_owner {
    void *user;
    /* Opening: a message that is not over; ascending by number. */
    opcomms_err (*found)(void *user, uint64_t uid, uint64_t ref, const opc__msg_meta *meta);
    /* Opening, in the order of the file: a received message with a number of its sender, whether
       it was consumed since or not; and a note. */
    opcomms_err (*seen)(void *user, const opc__msg_meta *meta);
    opcomms_err (*note)(void *user, unsigned type, const uint8_t *body, size_t n);
    /* Compaction: 0: this message is over. Else 1, or 1 more than how often it was tried, which
       lets the store forget earlier attempts; then it is given its place to come. Every message
       whose commit has returned is asked for. Without this function nothing is compacted. */
    int (*live)(void *user, uint64_t uid);
    void (*moved)(void *user, uint64_t uid, uint64_t ref);
    /* Asks for all notes anew, by `note`, but for that of this opening. Without this function all
       stay that ever were. */
    opcomms_err (*notes)(void *user);
    /* 1: the places to come are those that count now; 0: forget them. */
    void (*switched)(void *user, int done);
} opc__store_owner;

/* What the operations need of a hold. A note: OPC__STORE_OP and its body. */
#define OPC__STORE_OP 8u
#define OPC__STORE_ACK (OPC__STORE_OP + 8u)
#define OPC__STORE_DONE (OPC__STORE_OP + 16u)
#define OPC__STORE_TRIED (OPC__STORE_OP + 32u)
#define OPC__STORE_QUEUED 136u /* the largest head of a message, without what varies */

/* A commit: with what of its payload is stored by it, and not by `data` before. */
OPC__FN size_t opc__store_need(const opc__msg_meta *m) {
    size_t need = OPC__STORE_OP + OPC__STORE_QUEUED + (size_t)m->dest_len + m->context_len;
    size_t last = (size_t)(m->bytes % OPC__FRAG_BYTES);
    if (m->bytes <= OPC__FRAG_BYTES) return need + (size_t)m->bytes;
    need += 8u * (size_t)((m->bytes + OPC__FRAG_BYTES - 1) / OPC__FRAG_BYTES);
    return need + OPC__STORE_OP + 8u + (last > 0 ? last : OPC__FRAG_BYTES);
}

/* >>ram ==== L2 ==== messages in memory: a store that ends with the peer */

/* A message lies in a cell of fixed size; what does not fit there goes on in a chain of blocks, and
   what is the same for a whole stream of messages lies in a head that they share. The ref is the
   cell's index, with the low half of the message's number above it: so an old one is noticed. */
#define OPC__RAM_INLINE 72u
#define OPC__RAM_CELLS 64u /* in a page, which is allocated and freed at once */
#define OPC__RAM_SPARE 8u  /* pages kept though they are empty */
#define OPC__RAM_HEADS 16u /* those that a new message is compared with */
#define OPC__RAM_NONE 0xffffffffu

typedef struct opc__ram_block {
    struct opc__ram_block *next;
    uint32_t len;
    uint32_t cap;
    uint8_t data[1];
} opc__ram_block;

typedef struct opc__ram_head {
    uint32_t refs;
    uint32_t place;     /* among those that are compared */
    opc__msg_meta meta; /* dest and context point to `text`; what a cell has is zero */
    uint8_t text[1];
} opc__ram_head;

typedef struct opc__ram_cell {
    uint64_t uid; /* 0: free, or being received */
    uint64_t bytes;
    uint64_t wire_bytes;
    uint64_t number; /* of a free one: the next free one of its page */
    opc__ram_head *head;
    opc__ram_block *first;
    union {
        opc__ram_block *last; /* while it is being received */
        int64_t time_s;
    } u;
    uint8_t data[OPC__RAM_INLINE];
} opc__ram_cell;

typedef struct opc__ram_page {
    uint32_t next; /* among those with a free cell */
    uint32_t prev;
    uint32_t used;
    uint32_t free; /* the first free cell */
    opc__ram_cell cell[OPC__RAM_CELLS];
} opc__ram_page;

typedef struct opc__ram {
    opc__store base;
    opc__mem *mem;
    uint32_t *put; /* puts_max of them: index of the cell, or OPC__RAM_NONE: free */
    uint32_t puts_max;
    uint32_t puts_turn; /* likely to be free */
    opc__ram_page **page;
    uint32_t pages_cap;
    uint32_t pages_turn; /* no place below it is free */
    uint32_t pages_empty;
    uint32_t partial; /* the first page with a free cell */
    opc__ram_head *heads[OPC__RAM_HEADS];
    uint64_t uid;
    uint64_t position;
    uint64_t bytes;
    uint64_t bytes_max;
    opc__epoch epoch; /* set by the owner: counter 0 and random bits */
} opc__ram;

/* ---- cells ---- */

OPC__FN opc__ram_cell *opc__ram_at(const opc__ram *r, uint32_t i) {
    return &r->page[i / OPC__RAM_CELLS]->cell[i % OPC__RAM_CELLS];
}

OPC__FN void opc__ram_link(opc__ram *r, uint32_t k) {
    opc__ram_page *g = r->page[k];
    g->prev = OPC__RAM_NONE;
    g->next = r->partial;
    if (r->partial != OPC__RAM_NONE) r->page[r->partial]->prev = k;
    r->partial = k;
}

OPC__FN void opc__ram_unlink(opc__ram *r, uint32_t k) {
    opc__ram_page *g = r->page[k];
    if (g->next != OPC__RAM_NONE) r->page[g->next]->prev = g->prev;
    if (g->prev != OPC__RAM_NONE) {
        r->page[g->prev]->next = g->next;
    } else {
        OPCOMMS_ASSERT(r->partial == k);
        r->partial = g->next;
    }
}

/* One page more; 0: out of memory. */
OPC__FN int opc__ram_grow(opc__ram *r) {
    opc__ram_page *g, **grown;
    uint32_t i, k = r->pages_turn;
    while (k < r->pages_cap && r->page[k] != NULL) k++;
    if (k == r->pages_cap) {
        uint32_t cap = r->pages_cap == 0 ? 16 : r->pages_cap * 2;
        if (cap > OPC__RAM_NONE / OPC__RAM_CELLS) return 0;
        grown = (opc__ram_page **)opc__mem_array(r->mem, cap, sizeof *grown);
        if (grown == NULL) return 0;
        if (k > 0) memcpy(grown, r->page, k * sizeof *grown);
        opc__mem_free(r->mem, r->page, r->pages_cap * sizeof *grown);
        r->page = grown;
        r->pages_cap = cap;
    }
    g = (opc__ram_page *)opc__mem_raw(r->mem, sizeof *g);
    if (g == NULL) return 0;
    for (i = 0; i < OPC__RAM_CELLS; i++) {
        g->cell[i].uid = 0;
        g->cell[i].number = i + 1u;
    }
    g->used = 0;
    g->free = 0;
    r->page[k] = g;
    r->pages_turn = k + 1u;
    r->pages_empty++;
    opc__ram_link(r, k);
    return 1;
}

/* An empty cell, or OPC__RAM_NONE: out of memory. */
OPC__FN uint32_t opc__ram_take(opc__ram *r) {
    uint32_t k, i;
    opc__ram_page *g;
    opc__ram_cell *c;
    if (r->partial == OPC__RAM_NONE && !opc__ram_grow(r)) return OPC__RAM_NONE;
    k = r->partial;
    g = r->page[k];
    i = g->free;
    c = &g->cell[i];
    OPCOMMS_ASSERT(c->uid == 0);
    g->free = (uint32_t)c->number;
    if (g->used++ == 0) r->pages_empty--;
    if (g->used == OPC__RAM_CELLS) opc__ram_unlink(r, k);
    c->bytes = 0;
    c->head = NULL;
    c->first = NULL;
    c->u.last = NULL;
    return k * OPC__RAM_CELLS + i;
}

OPC__FN void opc__ram_head_drop(opc__ram *r, opc__ram_head *h) {
    OPCOMMS_ASSERT(h->refs > 0);
    if (--h->refs > 0) return;
    if (r->heads[h->place] == h) r->heads[h->place] = NULL;
    opc__mem_free(r->mem, h, offsetof(opc__ram_head, text) + 1u + h->meta.dest_len +
                                 h->meta.context_len);
}

OPC__FN void opc__ram_drop(opc__ram *r, uint32_t i) {
    uint32_t k = i / OPC__RAM_CELLS;
    opc__ram_page *g = r->page[k];
    opc__ram_cell *c = opc__ram_at(r, i);
    while (c->first != NULL) {
        opc__ram_block *b = c->first;
        c->first = b->next;
        opc__mem_free(r->mem, b, offsetof(opc__ram_block, data) + b->cap);
    }
    if (c->head != NULL) opc__ram_head_drop(r, c->head);
    r->bytes -= c->bytes;
    c->uid = 0;
    c->number = g->free;
    g->free = i % OPC__RAM_CELLS;
    if (g->used == OPC__RAM_CELLS) opc__ram_link(r, k);
    if (--g->used > 0) return;
    if (r->pages_empty < OPC__RAM_SPARE) {
        r->pages_empty++;
        return;
    }
    opc__ram_unlink(r, k);
    opc__mem_free(r->mem, g, sizeof *g);
    r->page[k] = NULL;
    if (k < r->pages_turn) r->pages_turn = k;
}

/* The message at a place, or NULL: it is gone. */
OPC__FN opc__ram_cell *opc__ram_find(const opc__ram *r, uint64_t ref) {
    uint32_t i = (uint32_t)ref;
    opc__ram_cell *c;
    if (i / OPC__RAM_CELLS >= r->pages_cap || r->page[i / OPC__RAM_CELLS] == NULL) return NULL;
    c = opc__ram_at(r, i);
    return c->uid != 0 && (c->uid & 0xffffffffu) == ref >> 32 ? c : NULL;
}

/* ---- receiving ---- */

OPC__FN size_t opc__ram_room(opc__store *s) {
    (void)s;
    return SIZE_MAX;
}

OPC__FN opcomms_err opc__ram_begin(opc__store *s, uint32_t *put) {
    opc__ram *r = (opc__ram *)(void *)s;
    uint32_t i, k = r->puts_turn, cell;
    for (i = 0; i < r->puts_max && r->put[k] != OPC__RAM_NONE; i++) {
        k = k + 1u < r->puts_max ? k + 1u : 0;
    }
    if (i == r->puts_max) return OPCOMMS_E_LIMIT;
    cell = opc__ram_take(r);
    if (cell == OPC__RAM_NONE) return OPCOMMS_E_NOMEM;
    r->put[k] = cell;
    r->puts_turn = k;
    *put = k;
    return OPCOMMS_OK;
}

/* Room for n bytes more, or for some of them: exactly as much as is there when it comes at once. */
OPC__FN opc__ram_block *opc__ram_block_more(opc__ram *r, opc__ram_cell *c, size_t n) {
    size_t cap = n < c->bytes ? (size_t)c->bytes : n;
    opc__ram_block *b;
    if (cap < 64u) cap = 64u;
    if (cap > OPC__FRAG_BYTES) cap = OPC__FRAG_BYTES;
    b = (opc__ram_block *)opc__mem_raw(r->mem, offsetof(opc__ram_block, data) + cap);
    if (b == NULL) return NULL;
    b->next = NULL;
    b->len = 0;
    b->cap = (uint32_t)cap;
    if (c->first == NULL) {
        c->first = b;
    } else {
        c->u.last->next = b;
    }
    c->u.last = b;
    return b;
}

OPC__FN opcomms_err opc__ram_data(opc__store *s, uint32_t put, const uint8_t *p, size_t n) {
    opc__ram *r = (opc__ram *)(void *)s;
    opc__ram_cell *c;
    OPCOMMS_ASSERT(put < r->puts_max);
    OPCOMMS_ASSERT(r->put[put] != OPC__RAM_NONE);
    c = opc__ram_at(r, r->put[put]);
    if (n > r->bytes_max - r->bytes) return OPCOMMS_E_FULL;
    while (n > 0) {
        opc__ram_block *b = c->u.last;
        size_t some;
        uint8_t *to;
        if (c->bytes < OPC__RAM_INLINE) {
            some = OPC__RAM_INLINE - (size_t)c->bytes;
            to = c->data + c->bytes;
        } else {
            if (b == NULL || b->len == b->cap) b = opc__ram_block_more(r, c, n);
            if (b == NULL) return OPCOMMS_E_NOMEM;
            some = b->cap - b->len;
            to = b->data + b->len;
        }
        if (some > n) some = n;
        memcpy(to, p, some);
        if (c->bytes >= OPC__RAM_INLINE) b->len += (uint32_t)some;
        c->bytes += some;
        r->bytes += some;
        p += some;
        n -= some;
    }
    return OPCOMMS_OK;
}

OPC__FN void opc__ram_copy(const opc__ram_cell *c, uint64_t offset, uint8_t *buf, size_t len,
                           size_t *got) {
    const opc__ram_block *b = c->first;
    size_t at = 0;
    *got = 0;
    if (offset >= c->bytes) return;
    if (len > c->bytes - offset) len = (size_t)(c->bytes - offset);
    if (offset < OPC__RAM_INLINE) {
        at = OPC__RAM_INLINE - (size_t)offset;
        if (at > len) at = len;
        memcpy(buf, c->data + offset, at);
        offset = 0;
    } else {
        offset -= OPC__RAM_INLINE;
    }
    while (at < len && b != NULL && offset >= b->len) {
        offset -= b->len;
        b = b->next;
    }
    while (at < len && b != NULL) {
        size_t some = b->len - (size_t)offset;
        if (some > len - at) some = len - at;
        memcpy(buf + at, b->data + offset, some);
        at += some;
        offset = 0;
        b = b->next;
    }
    *got = at;
}

OPC__FN opcomms_err opc__ram_peek(opc__store *s, uint32_t put, uint64_t offset, uint8_t *buf,
                                  size_t len, size_t *got) {
    opc__ram *r = (opc__ram *)(void *)s;
    OPCOMMS_ASSERT(put < r->puts_max);
    OPCOMMS_ASSERT(r->put[put] != OPC__RAM_NONE);
    opc__ram_copy(opc__ram_at(r, r->put[put]), offset, buf, len, got);
    return OPCOMMS_OK;
}

OPC__FN void opc__ram_abort(opc__store *s, uint32_t put) {
    opc__ram *r = (opc__ram *)(void *)s;
    OPCOMMS_ASSERT(put < r->puts_max);
    if (r->put[put] == OPC__RAM_NONE) return;
    opc__ram_drop(r, r->put[put]);
    r->put[put] = OPC__RAM_NONE;
}

/* Everything that a head holds. */
OPC__FN int opc__ram_head_fits(const opc__ram_head *h, const opc__msg_meta *m) {
    const opc__msg_meta *a = &h->meta;
    return a->kind == m->kind && a->from_id == m->from_id && a->dest_id == m->dest_id &&
           a->flags == m->flags && a->stream == m->stream && a->level == m->level &&
           a->options == m->options && a->dest_len == m->dest_len &&
           a->context_len == m->context_len && a->attempts_max == m->attempts_max &&
           a->expires_s == m->expires_s && a->epoch.counter == m->epoch.counter &&
           a->epoch.random == m->epoch.random && a->address.family == m->address.family &&
           a->address.port == m->address.port &&
           memcmp(a->address.ip, m->address.ip, sizeof a->address.ip) == 0 &&
           memcmp(a->from, m->from, 32) == 0 && memcmp(a->server, m->server, 32) == 0 &&
           (m->dest_len == 0 || memcmp(a->dest, m->dest, m->dest_len) == 0) &&
           (m->context_len == 0 || memcmp(a->context, m->context, m->context_len) == 0);
}

/* The head for a message; NULL: out of memory. */
OPC__FN opc__ram_head *opc__ram_head_get(opc__ram *r, const opc__msg_meta *m) {
    uint32_t place = (m->from[0] ^ m->server[0] ^ m->from_id ^ (m->dest_id * 5u) ^ m->dest_len ^
                      (m->dest_len > 0 ? m->dest[m->dest_len - 1u] : 0u)) % OPC__RAM_HEADS;
    opc__ram_head *h = r->heads[place];
    if (h == NULL || !opc__ram_head_fits(h, m)) {
        h = (opc__ram_head *)opc__mem_raw(r->mem, offsetof(opc__ram_head, text) + 1u +
                                                      m->dest_len + m->context_len);
        if (h == NULL) return NULL;
        h->refs = 0;
        h->place = place;
        h->meta = *m;
        h->meta.dest = h->text;
        h->meta.context = h->text + m->dest_len;
        if (m->dest_len > 0) memcpy(h->text, m->dest, m->dest_len);
        if (m->context_len > 0) memcpy(h->text + m->dest_len, m->context, m->context_len);
        r->heads[place] = h;
    }
    h->refs++;
    return h;
}

OPC__FN opcomms_err opc__ram_commit(opc__store *s, uint32_t put, const opc__msg_meta *meta,
                                    uint64_t *uid, uint64_t *ref, uint64_t *position) {
    opc__ram *r = (opc__ram *)(void *)s;
    opc__ram_cell *c;
    OPCOMMS_ASSERT(put < r->puts_max);
    OPCOMMS_ASSERT(r->put[put] != OPC__RAM_NONE);
    if (meta->dest_len > 1024u || meta->context_len > OPC__CONTEXT_MAX) return OPCOMMS_E_LIMIT;
    c = opc__ram_at(r, r->put[put]);
    c->head = opc__ram_head_get(r, meta);
    if (c->head == NULL) return OPCOMMS_E_NOMEM;
    c->uid = ++r->uid;
    c->wire_bytes = meta->wire_bytes;
    c->number = meta->number;
    c->u.time_s = meta->time_s;
    *uid = c->uid;
    *ref = (c->uid & 0xffffffffu) << 32 | r->put[put];
    *position = ++r->position;
    r->put[put] = OPC__RAM_NONE;
    r->puts_turn = put;
    return OPCOMMS_OK;
}

/* ---- stored ---- */

OPC__FN opcomms_err opc__ram_ack(opc__store *s, uint64_t ref, uint64_t uid, uint64_t *position) {
    opc__ram *r = (opc__ram *)(void *)s;
    (void)uid;
    if (opc__ram_find(r, ref) == NULL) return OPCOMMS_E_NOT_FOUND;
    opc__ram_drop(r, (uint32_t)ref);
    *position = ++r->position;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__ram_done(opc__store *s, uint64_t ref, uint64_t uid, int how,
                                  uint64_t *position) {
    (void)how;
    return opc__ram_ack(s, ref, uid, position);
}
OPC__FN opcomms_err opc__ram_tried(opc__store *s, const opc__try *t, uint64_t *position) {
    (void)t;
    *position = ++((opc__ram *)(void *)s)->position;
    return OPCOMMS_OK;
}
OPC__FN opcomms_err opc__ram_note(opc__store *s, unsigned type, const uint8_t *body, size_t n,
                                  uint64_t *position) {
    (void)type;
    (void)body;
    (void)n;
    *position = ++((opc__ram *)(void *)s)->position;
    return OPCOMMS_OK;
}
OPC__FN opcomms_err opc__ram_hold(opc__store *s, size_t bytes) {
    (void)s;
    (void)bytes;
    return OPCOMMS_OK;
}
OPC__FN void opc__ram_epoch(opc__store *s, opc__epoch *out) {
    *out = ((opc__ram *)(void *)s)->epoch;
}

OPC__FN opcomms_err opc__ram_meta(opc__store *s, uint64_t ref, opc__msg_meta *out, uint8_t *dest,
                                  uint8_t *context) {
    const opc__ram_cell *c = opc__ram_find((opc__ram *)(void *)s, ref);
    const opc__msg_meta *m;
    if (c == NULL) return OPCOMMS_E_NOT_FOUND;
    m = &c->head->meta;
    *out = *m;
    out->uid = c->uid;
    out->bytes = c->bytes;
    out->wire_bytes = c->wire_bytes;
    out->number = c->number;
    out->time_s = c->u.time_s;
    if (m->dest_len > 0) memcpy(dest, m->dest, m->dest_len);
    out->dest = dest;
    if (context != NULL && m->context_len > 0) memcpy(context, m->context, m->context_len);
    out->context = context;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__ram_read(opc__store *s, uint64_t ref, uint64_t offset, uint8_t *buf,
                                  size_t len, size_t *got) {
    const opc__ram_cell *c = opc__ram_find((opc__ram *)(void *)s, ref);
    if (c == NULL) return OPCOMMS_E_NOT_FOUND;
    opc__ram_copy(c, offset, buf, len, got);
    return OPCOMMS_OK;
}

OPC__FN uint64_t opc__ram_position(opc__store *s) { return ((opc__ram *)(void *)s)->position; }
OPC__FN opcomms_err opc__ram_write(opc__store *s) {
    (void)s;
    return OPCOMMS_OK;
}
OPC__FN opcomms_err opc__ram_flush_begin(opc__store *s) {
    (void)s;
    return OPCOMMS_E_AGAIN; /* never anything to do */
}
OPC__FN opcomms_err opc__ram_flush_end(opc__store *s, opcomms_err result) {
    (void)s;
    return result;
}
OPC__FN uint64_t opc__ram_bytes(opc__store *s) { return ((opc__ram *)(void *)s)->bytes; }
OPC__FN opcomms_err opc__ram_compact(opc__store *s, int force, int *flush) {
    (void)s;
    (void)force;
    *flush = 0;
    return OPCOMMS_E_AGAIN; /* what is over is gone */
}
OPC__FN opcomms_err opc__ram_backup(opc__store *s, const char *path) {
    (void)s;
    return path != NULL ? OPCOMMS_E_UNSUPPORTED : OPCOMMS_E_NOT_FOUND;
}
OPC__FN void opc__ram_space(opc__store *s, opc__space *out) {
    const opc__ram *r = (const opc__ram *)(void *)s;
    out->used = out->live = r->bytes;
    out->limit = r->bytes_max;
}

OPC__FN opcomms_err opc__ram_close(opc__store *s) {
    opc__ram *r = (opc__ram *)(void *)s;
    uint32_t i;
    for (i = 0; i < r->puts_max; i++) opc__ram_abort(s, i);
    for (i = 0; i < r->pages_cap * OPC__RAM_CELLS; i++) {
        if (r->page[i / OPC__RAM_CELLS] != NULL && opc__ram_at(r, i)->uid != 0) {
            opc__ram_drop(r, i);
        }
    }
    for (i = 0; i < r->pages_cap; i++) opc__mem_free(r->mem, r->page[i], sizeof **r->page);
    opc__mem_free(r->mem, r->page, r->pages_cap * sizeof *r->page);
    opc__mem_free(r->mem, r->put, (size_t)r->puts_max * sizeof *r->put);
    opc__mem_free(r->mem, r, sizeof *r);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__ram_open(opc__mem *mem, uint32_t puts_max, uint64_t bytes_max,
                                  opc__store **out) {
    static const opc__store_class c = {
        opc__ram_room,  opc__ram_begin, opc__ram_data,        opc__ram_peek,
        opc__ram_commit, opc__ram_abort, opc__ram_ack,        opc__ram_meta,     opc__ram_read,
        opc__ram_position, opc__ram_position, opc__ram_position, opc__ram_write,
        opc__ram_flush_begin, opc__ram_flush_begin, opc__ram_write, opc__ram_flush_end,
        opc__ram_close, opc__ram_bytes, opc__ram_hold, opc__ram_done, opc__ram_tried,
        opc__ram_note, opc__ram_epoch, opc__ram_compact, opc__ram_space, opc__ram_backup,
    };
    opc__ram *r = (opc__ram *)opc__mem_alloc(mem, sizeof *r);
    uint32_t i;
    if (r == NULL) return OPCOMMS_E_NOMEM;
    r->put = (uint32_t *)opc__mem_array(mem, puts_max, sizeof *r->put);
    if (r->put == NULL) {
        opc__mem_free(mem, r, sizeof *r);
        return OPCOMMS_E_NOMEM;
    }
    for (i = 0; i < puts_max; i++) r->put[i] = OPC__RAM_NONE;
    r->base.c = &c;
    r->partial = OPC__RAM_NONE;
    r->mem = mem;
    r->puts_max = puts_max;
    r->bytes_max = bytes_max;
    *out = &r->base;
    return OPCOMMS_OK;
}

/* >>log ==== L2 ==== append-only message log; torn tails are cut on open, damage is refused */

/* All integers are big-endian. "seeded CRC" is CRC-32C that begins with the CRC-32C of the salt, so
   that a payload which contains a forged batch never checks: the salt never leaves the file.
   CRC-32C: RFC 3720 B.4; to begin with the CRC of something is to go on as if that came before.

   Header, 4 096 bytes: two slots, at 0 and 2 048, written in turn: sequence n lies in slot n & 1.
   The valid slot of higher sequence counts. The rest is zero.
       0  "OPCLOG\r\n"                       80  salt, 32 random bytes
       8  major 1, minor 1: 2 + 2 bytes     112  number floor: 8
      12  slot size S, 512: 4               120  synced: 8
      16  sequence: 8                       128  encryption: key epoch 4, tag length 4 (16),
      24  open counter: 8                        length of the wrapped key 4 (88), room for it 256;
      32  random number of this open: 8          all zero: not encrypted
      40  creation, seconds since 1970: 8   396  zero
      48  public key hash, 32 bytes       S - 4  CRC-32C of the S - 4 bytes before
   A slot is valid when its first 8 bytes and its CRC are right and 512 <= S <= 2 048. Each opening
   writes one slot: bytes that a newer minor version put there stay. Message numbers up to the
   floor are never given out again: where not every number is synced before it is used, it lies
   2^20 ahead of the last number seen. Everything below `synced` was on the disk when the slot was
   written. When one slot is damaged the other is used; it may be the older one, so the
   open counter then goes up by one more, and both slots are written.

   Batch, the unit that is written: all of it or nothing. The first lies at 4 096, each next one
   right behind; behind the last one there may be zeros.
       0  "OPCB"                 16  own offset: 8      40  flags: 4 (1: the log was closed here)
       4  length: 4              24  open counter: 8    44  seeded CRC of the 44 bytes before, with
       8  seeded CRC: 4          32  synced_to: 8           bytes 8 to 11 as zero
      12  operations: 4          48  operations, one behind the other
   The CRC at 8 covers the whole batch, with itself as zero. The length counts from byte 0, 48 to
   1 048 576. A batch is valid when both CRCs, magic, length and own offset are right and synced_to
   is at most its own offset: all below synced_to was on the disk when the batch was made. Flags
   above 0xffff must be understood: a reader that does not know one refuses the log. 0x10000 marks a
   batch with operations of type 4 to 8 or 12: they are of format 1.1, and a reader of 1.0 would
   skip them and give out the numbers of their messages again. A log that never held one is
   read by 1.0 too.

   Operation: type 1, zero 3, body length 4, body.
       1 message   from 32, from_id 1, dest_id 1, flags 1 (1: text), zero 1, dest length 4 (at most
                   1 024), number 8, bytes 8, wire bytes 8, time 8 (s since 1970), fragments 4,
                   payload CRC 4 (0: no payload here), head CRC 4, then the offsets of the fragments
                   (8 each: where their type byte is), dest, and the payload when there are no
                   fragments. Both CRCs are seeded; the head's covers the body up to the payload,
                   with itself as zero
       2 fragment  seeded CRC of the data 4, zero 4, data: 16 384 bytes, the last of a message 1 to
                   16 384. One that no message names belongs to a message that was given up.
       3 acknowledged   number 8 of the message: it is not handed out again
       4 queued    to be sent. As 1 with server 32 (the key to deliver to) for from, and level 1 for
                   the zero; then, from byte 84 of the body on: address: family 1 (0, 4 or 6),
                   zero 1, port 2, ip 16; options 1, zero 1, context length 2 (at most 256),
                   attempts at most 4, expires 8 (s since 1970 or 0), the epoch it was queued in:
                   open counter 8, random 8; the offsets of the fragments, dest, context, payload
       5 over      number 8, how 1 (1 delivered, 2 cancelled, 3 taken), zero 7: the message of that
                   number is queued no more
       6 attempt failed  number 8, attempts 4, code 4 (of the failure), tried 1 (1 by the native
                   protocol, 2 by tarpc), zero 7, time 8: it is queued, with this behind it
       7 dead-lettered   as 6: it is a dead letter, not queued any more. Of several 6 and 7 the last
                   one counts
       8 dead letter over  as 5
       9, 10, 13   notes of the owner: numbers seen from streams, caller's state, peers. Opaque here
      11 checkpoint     number floor 8 (as in the header), then what newer versions add
      12 message of a stream  as 1 with stream 1 (1 queue, 2 direct) for the zero; then, from byte
                   84 of the body on: the sender's epoch: open counter 8, random 8; number 8 in that
                   epoch and stream; the offsets of the fragments, dest, payload. Flag 128: dest is
                   the hash in the header as 64 hex digits, and is left out
      14 opened    open counter 8, random 32, of which the first 8 are with it the name of this
                   opening (its epoch), and also stand in the slot. Written and synced before the
                   log is used
      15 salt      32 random bytes; of an encrypted log only, see there
   Numbers rise from message to message, whatever their type. An operation of unknown type up to
   127 is skipped and kept; above that a reader which does not know it refuses the log. Bodies of
   types 1 to 8 and 12 never change. A newer major version is refused.

   Encryption: there is a data key of 32 random bytes; the slot has it wrapped (its 88 bytes: see
   section >>seal) under a password or the private key. The key epoch rises with each new data key.
   Operations of type 15 are in the clear, and apply to all that lie behind, up to the next. One
   begins the file, and each opening begins with one; its subkey is HKDF-SHA-256 of the data key,
   with its 32 bytes and the open counter of its batch, 8, as the salt, and "opcomms log,
   operations" as info. Of any other operation the 8 bytes of type, zeros and length are in the
   clear; the body is ciphertext and then a tag of 16 bytes, which counts in its length:
   ChaCha20-Poly1305 (RFC 8439) under the subkey, the nonce being the offset of the type byte, 8,
   and 4 zeros; the 8 bytes in the clear are the associated data. A compaction and a backup begin
   with a salt of their own, so that no two bodies are encrypted by the same key and nonce: not
   those of a tail that was cut, nor of a file restored, nor of two copies. The CRCs of a batch are
   over what is in the file, so damage and torn tails are found without any key; the CRCs inside a
   body are over what was encrypted. A tag that is wrong in a valid batch is damage.

   Space: zeros are written ahead of the batches and synced, so that a sync of a batch need not also
   commit a new file size; zeros behind the last batch are no tail.

   Compaction and backup write what is live into a new file, beside the log under its name and
   ".new" (a backup: under its own and ".part"), with a header of the same opening but another salt,
   whose slot comes last: synced covers the whole file. Operations keep their order and messages
   their numbers; what is over, and notes that the owner writes anew at the end, are left out;
   operations of unknown type are kept. Then the new file takes the log's name. An opening removes
   such a file: it never came so far.

   Recovery: with D the highest synced_to of any valid batch, also of those behind a bad place, and
   of the header, a bad place below D is damage: OPCOMMS_E_LOG_DAMAGED with its offset, and the file
   stays as it is. At or above D it is a torn tail: cut there; what is kept from above D is written
   and synced again before any of it is shown. A batch whose open counter is lower than that of the
   batch before it is a bad place too: it is older than what it follows. */

#define OPC__LOG_HEADER 4096u
#define OPC__LOG_SLOT 512u
#define OPC__LOG_SLOT_MAX 2048u
#define OPC__LOG_BATCH 48u
#define OPC__LOG_BATCH_MAX 1048576u
#define OPC__LOG_MAGIC 0x4f504342u
#define OPC__LOG_FRAGS (OPCOMMS_MAX_FRAME / OPC__FRAG_BYTES + 2u)
#define OPC__LOG_FIXED 84u   /* the body of any message begins with these bytes, */
#define OPC__LOG_STREAM 108u /* of a stream with these, */
#define OPC__LOG_QUEUED 136u /* and a queued one with these */
#define OPC__LOG_HEAD_MAX (OPC__LOG_QUEUED + 8u * OPC__LOG_FRAGS + 1024u + OPC__CONTEXT_MAX)
OPC__STATIC_ASSERT(log_queued, OPC__LOG_QUEUED == OPC__STORE_QUEUED);
#define OPC__LOG_BUFFER 262144u
#define OPC__LOG_READ 65536u /* read ahead */
#define OPC__LOG_AHEAD 4194304u
#define OPC__LOG_AHEAD_MIN 65536u
#define OPC__LOG_UID_SKIP ((uint64_t)1 << 20)
#define OPC__LOG_UID_MAX ((uint64_t)1 << 62)
#define OPC__LOG_CLOSED 1u
#define OPC__LOG_NEWER 0x10000u   /* a batch that format 1.0 does not understand */
#define OPC__LOG_MUST 0xfffe0000u /* batch flags that must be understood and are not */
#define OPC__LOG_OP_MUST 128u     /* operation types from here on too */

#define OPC__LOG_OWN 128u         /* message flag: dest is our own identity */
#define OPC__LOG_OPENED 40u       /* body of OPC__NOTE_OPENED */
#define OPC__LOG_SIZE_MAX ((uint64_t)1 << 48) /* of a file; the index of opening counts on it */
#define OPC__LOG_SLICE 262144u        /* bytes that one step of a copy moves, about */
#define OPC__LOG_COPY_SYNC 8388608u   /* a copy is synced when so many are not */
#define OPC__LOG_DEAD_MIN 1048576u
#define OPC__LOG_RETRY_US 10000000u   /* a compaction that failed is not tried again before */
#define OPC__LOG_CRYPT 268u           /* of the slot, from byte 128 on */
#define OPC__LOG_SALT 32u
#define OPC__LOG_SALTS 256u           /* a log with more of them is compacted */
#define OPC__LOG_OP_MAX (OPC__LOG_HEAD_MAX + 8u + OPC__FRAG_BYTES + OPC__SEAL_TAG) /* of ours */
#define OPC__LOG_HOLD_ACKS 4096u      /* no hold is for more of the smallest operations */

enum {
    OPC__OP_MESSAGE = 1,
    OPC__OP_FRAGMENT = 2,
    OPC__OP_ACK = 3,
    OPC__OP_QUEUED = 4,
    OPC__OP_OVER = 5,
    OPC__OP_FAILED = 6,
    OPC__OP_DEAD = 7,
    OPC__OP_TAKEN = 8,
    OPC__OP_CHECKPOINT = 11,
    OPC__OP_STREAM = 12,
    OPC__OP_SALT = 15 /* 14 is OPC__NOTE_OPENED */
};

/* What a log shall be. */
enum {
    OPC__LOG_CLEAR = 0, /* in the clear; an encrypted one is refused */
    OPC__LOG_BY_PASSWORD = OPC__SEAL_BY_PASSWORD,
    OPC__LOG_BY_KEY = OPC__SEAL_BY_KEY,
    OPC__LOG_DECRYPT = 3 /* in the clear, also when it was encrypted */
};

/* Who knows the secrets. A log that is not what it shall be is opened by whatever secret it needs,
   and opc__log_convert makes it what it shall be. */
typedef struct opc__log_secret {
    int want;
    const uint8_t *key;            /* 32 bytes, of opc__seal_secret; may be NULL */
    const opc__seal_ask *password; /* may be NULL, */
    const opc__seal_ask *fresh;    /* and so may be this: the password from now on */
    uint32_t iterations;           /* of a password from now on */
} opc__log_secret;

typedef struct opc__log_options {
    const opcomms_platform *plat;
    opc__mem *mem;
    const char *path;
    uint8_t key_hash[32];
    int durability; /* as opcomms_durability */
    uint32_t buffer_bytes; /* each of two; 0: 256 KiB */
    uint32_t puts_max;
    uint32_t ahead_bytes; /* most that is written ahead at once; 0: nothing */
    uint64_t log_bytes_max;
    uint64_t uid_floor;     /* of a log that is begun: numbers up to here are taken, */
    uint64_t counter_floor; /* and so are these open counters */
    const opc__store_owner *owner; /* copied; may be NULL */
    uint64_t dead_bytes_min; /* compaction begins with more; 0: 1 MiB */
    uint32_t slice_bytes;    /* that one step of it moves, about; 0: 256 KiB */
    opc__log_secret secret;
} opc__log_options;

/* How operations are encrypted. */
typedef struct opc__log_crypt {
    uint32_t tag;                  /* bytes that each body is longer by; 0: not at all */
    uint8_t key[32];               /* the data key */
    uint8_t field[OPC__LOG_CRYPT]; /* of the slot */
} opc__log_crypt;

/* From `at` on operations are under this key. */
typedef struct opc__log_salt {
    uint64_t at;
    uint8_t subkey[32];
} opc__log_salt;

/* A message being received: its last, unfinished fragment and the offsets of the others. */
typedef struct opc__log_put {
    uint32_t len;
    uint32_t frags;
    uint64_t bytes;
    uint64_t frag[OPC__LOG_FRAGS];
    uint32_t moved; /* of the fragments, how many a copy has, */
    uint64_t to[OPC__LOG_FRAGS]; /* and where */
    uint8_t data[OPC__FRAG_BYTES];
} opc__log_put;

typedef struct opc__log_buffer {
    uint8_t *p;
    uint32_t len; /* including the batch header */
    uint32_t ops;
    uint32_t flags;
    uint32_t tag; /* each body has room for so many bytes more */
    int shut;     /* and is encrypted */
    uint64_t at; /* file offset */
} opc__log_buffer;

/* A copy of a log under way: compaction, or a backup. */
typedef struct opc__log_copy {
    intptr_t file;
    int backup;
    intptr_t dir;             /* a backup's, */
    char name[OPC__PATH_MAX]; /* and its name there, with room for OPC__LOG_SUFFIX */
    size_t name_len;
    uint32_t seed;
    uint64_t at;    /* of the log: the first batch that is not copied whole */
    uint64_t begun; /* what ended before this place was known to be over when the copy began */
    uint8_t *in;    /* the log from in_at on */
    uint32_t in_cap;
    uint32_t in_len;
    uint64_t in_at;
    uint32_t op;    /* in the batch at `at`, of the first one not copied; 0: not looked at yet */
    uint32_t frags; /* of the message under way that are copied */
    uint64_t frag[OPC__LOG_FRAGS];
    opc__log_buffer out;
    uint32_t out_cap;
    uint64_t synced;  /* of the copy */
    uint64_t sync_to; /* what the flush under way makes of it */
    uint64_t copied;  /* bytes moved by the step under way, */
    uint64_t most;    /* and how many it may move */
    uint64_t end_seen; /* the log's end at the step before */
    int noting;       /* notes go into the copy */
    int dead;         /* given up; the end of the flush under way removes it */
    opc__log_crypt crypt;
    uint8_t subkey[32];
    int convert; /* it makes the log what it shall be */
    uint8_t *plain; /* an operation of the log, decrypted */
    uint32_t plain_cap;
    int os_code;
    uint32_t slot_bytes;
    uint8_t slot[OPC__LOG_SLOT_MAX];
} opc__log_copy;

/* What became of the name when a copy was to take it. */
enum { OPC__LOG_KEPT = 0, OPC__LOG_UNKNOWN = 1, OPC__LOG_TAKEN = 2 };

typedef struct opc__log {
    opc__store base;
    const opcomms_platform *plat;
    opc__mem *mem;
    intptr_t dir;
    intptr_t file;
    intptr_t lock;
    char *name; /* in that directory; with room for OPC__LOG_SUFFIX */
    size_t name_len;
    uint32_t seed;
    uint64_t open_counter;
    uint64_t uid;
    uint32_t cap;
    uint64_t bytes_max;
    opc__store_owner owner;
    opc__epoch epoch;
    int weak; /* numbers are used that are not synced */
    uint8_t note[OPC__LOG_OPENED]; /* of this opening */
    uint32_t slot_bytes;
    uint8_t slot[OPC__LOG_SLOT_MAX]; /* the newest, as written */
    uint64_t base_position; /* positions are offsets and this, modulo 2^64 */
    uint64_t live;          /* bytes of messages that are not over */
    uint64_t fixed;         /* others that the last compaction could not do without */
    uint64_t dead_min;
    uint32_t slice;
    uint64_t retry_us;
    opc__log_copy *copy;
    int switching;   /* the flush under way makes the copy the log */
    int switch_name; /* OPC__LOG_KEPT... */
    int copy_sync;   /* it syncs the copy too: 1; -1: that failed */
    int saving;      /* it makes the copy a backup */
    opcomms_err saved; /* what became of that one */
    char own[65];  /* our own identity as text */
    uint32_t held; /* of a hold: bytes to come, */
    int held_some; /* some are there, */
    int held_room; /* and the limit has room for all */
    opc__log_buffer active;
    opc__log_buffer sealed;
    int flushing;
    int os_code;
    opcomms_err failed;
    uint64_t written;
    uint64_t durable;
    uint64_t opened; /* the end when it was opened */
    uint64_t cut;    /* bytes that opening cut off */
    /* owned by the flush under way, by the lock's holder otherwise */
    int flush_os;
    int filling;
    uint32_t ahead;
    uint64_t zeroed; /* behind the batches the file holds zeros up to here */
    opc__log_put **put;
    uint32_t puts_max;
    opc__log_put *spare; /* of the message before: the usual case needs no allocation */
    /* the one head and the one payload piece read last, both verified */
    uint8_t *head;
    uint32_t head_len;
    uint32_t head_body; /* bytes of its operation's body */
    unsigned head_type;
    uint64_t head_ref;
    uint8_t *piece;
    uint32_t piece_len;
    uint64_t piece_ref;
    /* what was read of the file in one piece; NULL: nothing so far */
    uint8_t *read;
    uint32_t read_len;
    uint64_t read_at;
    uint64_t read_last; /* where the last bytes were that were wanted */
    /* of an encrypted log, or one that shall be */
    opc__seal_cipher cipher;
    const opc__log_secret *secret; /* while it is opened; NULL: only batches can be looked at */
    opc__log_crypt crypt;
    opc__log_crypt next; /* what the next compaction makes it, */
    int convert;         /* when this says so */
    int blind;           /* it is encrypted and there is no secret */
    opc__log_salt *salt; /* ascending */
    uint32_t salts;
    uint32_t salts_cap;
    uint8_t *op; /* the operation read last, decrypted; behind it room to read one */
    uint32_t op_len;
    uint64_t op_ref;
} opc__log;

#define OPC__LOG_SUFFIX 8u /* ".new", ".part" */

OPC__FN opc__log *opc__log_of(opc__store *s) { return (opc__log *)(void *)s; }

/* A reference: where the message is, 48 bits, and above them how many bytes it takes in the log,
   rounded up: 11 bits, in units of 8 bytes, shifted by the 5 bits above one less than those say. */
OPC__FN uint64_t opc__log_ref(uint64_t at, uint64_t bytes) {
    uint64_t n = (bytes + 7) / 8, e = 0;
    while (n >= (e == 0 ? 2048u : 4096u)) {
        n = e == 0 ? n : (n + 1) / 2;
        e++;
    }
    OPCOMMS_ASSERT(e < 32);
    return at | (n & 2047u) << 48 | e << 59;
}

OPC__FN uint64_t opc__log_at(uint64_t ref) { return ref & (OPC__LOG_SIZE_MAX - 1); }

OPC__FN uint64_t opc__log_size_of(uint64_t ref) {
    uint64_t n = (ref >> 48) & 2047u, e = ref >> 59;
    return (e == 0 ? n : (n + 2048) << (e - 1)) * 8;
}

/* All that a message takes, by its operation's body and its head. */
OPC__FN uint64_t opc__log_message_bytes(const uint8_t *head, uint64_t body, uint32_t tag) {
    uint64_t frags = opc__buf_be32(head + 72), bytes = opc__buf_be64(head + 48);
    if (bytes > frags * OPC__FRAG_BYTES) bytes = frags * OPC__FRAG_BYTES; /* whatever it says */
    return 8 + body + tag + bytes + (16 + (uint64_t)tag) * frags;
}

OPC__FN opcomms_err opc__log_poison(opc__log *l, opcomms_err rc) {
    if (l->failed == OPCOMMS_OK) l->failed = rc == OPCOMMS_OK ? OPCOMMS_E_IO : rc;
    return l->failed;
}

/* ---- reading ---- */

OPC__FN opcomms_err opc__log_file_read(const opcomms_platform *plat, intptr_t file, uint64_t at,
                                       uint8_t *buf, size_t len) {
    int os = 0;
    while (len > 0) {
        size_t got = 0;
        opcomms_err rc = plat->file_read(plat->user, file, at, buf, len, &got, &os);
        if (rc != OPCOMMS_OK) return rc;
        if (got == 0 || got > len) return OPCOMMS_E_LOG_DAMAGED;
        at += got;
        buf += got;
        len -= got;
    }
    return OPCOMMS_OK;
}

/* Bytes that are in the file. Who reads on, from message to message, has the next ones with the
   same call: what is written once never changes. */
OPC__FN opcomms_err opc__log_get_written(opc__log *l, uint64_t at, uint8_t *buf, size_t len) {
    uint64_t end = l->flushing && l->sealed.len > 0 ? l->sealed.at : l->active.at;
    uint64_t ahead = at - l->read_last;
    opcomms_err rc;
    l->read_last = at;
    if (len > OPC__LOG_READ / 4 || ahead > OPC__LOG_READ / 4 || at > end || len > end - at) {
        return opc__log_file_read(l->plat, l->file, at, buf, len);
    }
    if (at < l->read_at || at - l->read_at > l->read_len || len > l->read_len - (at - l->read_at)) {
        size_t n = end - at < OPC__LOG_READ ? (size_t)(end - at) : OPC__LOG_READ;
        if (l->read == NULL) l->read = (uint8_t *)opc__mem_raw(l->mem, OPC__LOG_READ);
        if (l->read == NULL) return opc__log_file_read(l->plat, l->file, at, buf, len);
        l->read_len = 0;
        rc = opc__log_file_read(l->plat, l->file, at, l->read, n);
        if (rc != OPCOMMS_OK) return rc;
        l->read_at = at;
        l->read_len = (uint32_t)n;
    }
    memcpy(buf, l->read + (at - l->read_at), len);
    return OPCOMMS_OK;
}

/* Bytes of the log wherever they are now: active buffer, sealed buffer, file. */
OPC__FN opcomms_err opc__log_get(opc__log *l, uint64_t at, uint8_t *buf, size_t len) {
    const opc__log_buffer *b = NULL;
    if (l->active.ops > 0 && at >= l->active.at) {
        b = &l->active;
    } else if (l->flushing && l->sealed.len > 0 && at >= l->sealed.at) {
        b = &l->sealed;
    }
    if (b == NULL) return opc__log_get_written(l, at, buf, len);
    if (at - b->at > b->len || len > b->len - (at - b->at)) return OPCOMMS_E_LOG_DAMAGED;
    memcpy(buf, b->p + (at - b->at), len);
    return OPCOMMS_OK;
}

/* ---- encryption ---- */

/* The key under which operations lie behind this salt. */
OPC__FN void opc__log_derive(const opc__log_crypt *c, const uint8_t salt[OPC__LOG_SALT],
                             uint64_t counter, uint8_t subkey[32]) {
    static const char label[] = "opcomms log, operations";
    uint8_t all[OPC__LOG_SALT + 8];
    memcpy(all, salt, OPC__LOG_SALT);
    opc__buf_put64(all + OPC__LOG_SALT, counter);
    opc__seal_hkdf(all, sizeof all, c->key, sizeof c->key, label, sizeof label - 1, subkey, 32);
}

/* Memory for one salt more, and for an operation. */
OPC__FN opcomms_err opc__log_salt_room(opc__log *l) {
    uint32_t cap = l->salts_cap == 0 ? 16 : 2 * l->salts_cap;
    opc__log_salt *p;
    if (l->op == NULL) l->op = (uint8_t *)opc__mem_raw(l->mem, 2 * OPC__LOG_OP_MAX);
    if (l->op == NULL) return OPCOMMS_E_NOMEM;
    if (l->salts < l->salts_cap) return OPCOMMS_OK;
    p = (opc__log_salt *)opc__mem_array(l->mem, cap, sizeof *p);
    if (p == NULL) return OPCOMMS_E_NOMEM;
    if (l->salts > 0) memcpy(p, l->salt, l->salts * sizeof *p);
    opc__mem_free_wiped(l->mem, l->salt, l->salts_cap * sizeof *p);
    l->salt = p;
    l->salts_cap = cap;
    return OPCOMMS_OK;
}

/* A salt, at `at`. One that is known already is no news. */
OPC__FN opcomms_err opc__log_salt_add(opc__log *l, uint64_t at, uint64_t counter,
                                      const uint8_t salt[OPC__LOG_SALT]) {
    opcomms_err rc;
    if (l->salts > 0 && at <= l->salt[l->salts - 1].at) return OPCOMMS_OK;
    rc = opc__log_salt_room(l);
    if (rc != OPCOMMS_OK) return rc;
    l->salt[l->salts].at = at;
    opc__log_derive(&l->crypt, salt, counter, l->salt[l->salts].subkey);
    l->salts++;
    return OPCOMMS_OK;
}

/* The key of the operation at `at`, or NULL. */
OPC__FN const uint8_t *opc__log_subkey(const opc__log *l, uint64_t at) {
    uint32_t lo = 0, hi = l->salts;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (l->salt[mid].at < at) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo > 0 ? l->salt[lo - 1].subkey : NULL;
}

OPC__FN void opc__log_nonce(uint64_t at, uint8_t nonce[12]) {
    opc__buf_put64(nonce, at);
    memset(nonce + 8, 0, 4);
}

/* Encrypts the operations of a batch where they are. */
OPC__FN void opc__log_shut(const opc__log *l, opc__log_buffer *b, const uint8_t *subkey) {
    uint32_t i = OPC__LOG_BATCH;
    while (i < b->len) {
        uint8_t *op = b->p + i, nonce[12];
        uint32_t n = opc__buf_be32(op + 4);
        if (op[0] != OPC__OP_SALT) {
            OPCOMMS_ASSERT(n >= b->tag);
            opc__log_nonce(b->at + i, nonce);
            opc__seal_encrypt(&l->cipher, subkey, nonce, op, 8, op + 8, n - b->tag,
                              op + 8 + n - b->tag);
        }
        i += 8 + n;
    }
    OPCOMMS_ASSERT(i == b->len);
    b->shut = 1;
}

/* The body, of *n bytes with its tag, of the operation at `at` that begins at op, into `out`. */
OPC__FN opcomms_err opc__log_unshut(const opc__log *l, uint64_t at, const uint8_t *op,
                                    uint8_t *out, uint32_t *n) {
    const uint8_t *subkey = opc__log_subkey(l, at);
    uint8_t nonce[12];
    uint32_t len = *n;
    if (subkey == NULL || len < l->crypt.tag) return OPCOMMS_E_LOG_DAMAGED;
    len -= l->crypt.tag;
    opc__log_nonce(at, nonce);
    memcpy(out, op + 8, len);
    if (!opc__seal_decrypt(&l->cipher, subkey, nonce, op, 8, out, len, op + 8 + len)) {
        return OPCOMMS_E_LOG_DAMAGED;
    }
    *n = len;
    return OPCOMMS_OK;
}

/* The operation at `at` into l->op, as it was before it was encrypted. */
OPC__FN opcomms_err opc__log_op_read(opc__log *l, uint64_t at) {
    uint8_t head[8], *raw = l->op + OPC__LOG_OP_MAX;
    uint32_t n;
    int clear = l->active.ops > 0 && at >= l->active.at && !l->active.shut;
    opcomms_err rc;
    if (l->op_len > 0 && l->op_ref == at) return OPCOMMS_OK;
    l->op_len = 0;
    rc = opc__log_get(l, at, head, sizeof head);
    if (rc != OPCOMMS_OK) return rc;
    n = opc__buf_be32(head + 4);
    if (n < l->crypt.tag || head[0] == OPC__OP_SALT) return OPCOMMS_E_LOG_DAMAGED;
    if (n > OPC__LOG_OP_MAX - 8) return OPCOMMS_E_LIMIT;
    memcpy(l->op, head, sizeof head);
    memcpy(raw, head, sizeof head);
    rc = opc__log_get(l, at + 8, clear ? l->op + 8 : raw + 8, n);
    if (rc == OPCOMMS_OK && !clear) rc = opc__log_unshut(l, at, raw, l->op + 8, &n);
    if (rc != OPCOMMS_OK) return rc;
    if (clear) n -= l->crypt.tag;
    opc__buf_put32(l->op + 4, n);
    l->op_ref = at;
    l->op_len = 8 + n;
    return OPCOMMS_OK;
}

/* Bytes of the operation at `at`, from its type byte + skip on. */
OPC__FN opcomms_err opc__log_get_op(opc__log *l, uint64_t at, size_t skip, uint8_t *buf,
                                    size_t len) {
    opcomms_err rc;
    if (l->crypt.tag == 0) return opc__log_get(l, at + skip, buf, len);
    if (l->blind) return OPCOMMS_E_ENCRYPTED;
    rc = opc__log_op_read(l, at);
    if (rc != OPCOMMS_OK) return rc;
    if (skip > l->op_len || len > l->op_len - skip) return OPCOMMS_E_LOG_DAMAGED;
    memcpy(buf, l->op + skip, len);
    return OPCOMMS_OK;
}

/* ---- messages, read ---- */

OPC__FN uint32_t opc__log_crc(const opc__log *l, const uint8_t *p, size_t n) {
    return opc__crc32c(l->seed, p, n);
}

/* Bytes that the body of a message begins with; 0: no message. */
OPC__FN size_t opc__log_fixed(unsigned type) {
    switch (type) {
    case OPC__OP_MESSAGE: return OPC__LOG_FIXED;
    case OPC__OP_STREAM: return OPC__LOG_STREAM;
    case OPC__OP_QUEUED: return OPC__LOG_QUEUED;
    default: return 0;
    }
}

/* How long the head of a message is, whose body is of n bytes and begins at b: all but the payload.
   0: there is none that fits. Only the fixed part is looked at. */
OPC__FN size_t opc__log_head_len(unsigned type, const uint8_t *b, size_t n) {
    size_t fixed = opc__log_fixed(type), dest, context;
    uint32_t frags;
    if (fixed == 0 || n < fixed) return 0;
    dest = opc__buf_be32(b + 36);
    frags = opc__buf_be32(b + 72);
    context = type == OPC__OP_QUEUED ? opc__buf_be16(b + 106) : 0;
    if (dest > 1024u || context > OPC__CONTEXT_MAX || frags > (n - fixed) / 8u) return 0;
    fixed += 8u * (size_t)frags;
    if (dest + context > n - fixed) return 0;
    fixed += dest + context;
    return frags == 0 && opc__buf_be64(b + 48) != n - fixed ? 0 : fixed;
}

/* Is the head in b, of len bytes, as it was written? */
OPC__FN int opc__log_head_sound(const opc__log *l, unsigned type, const uint8_t *b, size_t len) {
    static const uint8_t zero[4] = {0, 0, 0, 0};
    uint32_t crc = opc__crc32c(opc__log_crc(l, b, 80), zero, 4);
    if (opc__crc32c(crc, b + 84, len - 84u) != opc__buf_be32(b + 80)) return 0;
    if (type == OPC__OP_STREAM) {
        if (b[35] != OPC__STREAM_QUEUE && b[35] != OPC__STREAM_DIRECT) return 0;
        return !(b[34] & OPC__LOG_OWN) || opc__buf_be32(b + 36) == 0;
    }
    return type != OPC__OP_QUEUED || b[84] == 0 || b[84] == 4 || b[84] == 6;
}

/* Loads and verifies the head of the message at `ref`. */
OPC__FN opcomms_err opc__log_head(opc__log *l, uint64_t ref) {
    uint8_t op[8];
    size_t len, fixed;
    opcomms_err rc;
    ref = opc__log_at(ref);
    if (l->head_ref == ref && l->head_len > 0) return OPCOMMS_OK;
    l->head_len = 0;
    rc = opc__log_get_op(l, ref, 0, op, 8);
    if (rc != OPCOMMS_OK) return rc;
    fixed = opc__log_fixed(op[0]);
    if (fixed == 0 || opc__buf_be32(op + 4) < fixed) return OPCOMMS_E_LOG_DAMAGED;
    rc = opc__log_get_op(l, ref, 8, l->head, fixed);
    if (rc != OPCOMMS_OK) return rc;
    len = opc__log_head_len(op[0], l->head, opc__buf_be32(op + 4));
    if (len == 0) return OPCOMMS_E_LOG_DAMAGED;
    if (opc__buf_be32(l->head + 72) > OPC__LOG_FRAGS) {
        return OPCOMMS_E_LIMIT; /* a larger OPCOMMS_MAX_FRAME stored it */
    }
    rc = opc__log_get_op(l, ref, 8 + fixed, l->head + fixed, len - fixed);
    if (rc != OPCOMMS_OK) return rc;
    if (!opc__log_head_sound(l, op[0], l->head, len)) return OPCOMMS_E_LOG_DAMAGED;
    l->head_ref = ref;
    l->head_body = opc__buf_be32(op + 4);
    l->head_len = (uint32_t)len;
    l->head_type = op[0];
    return OPCOMMS_OK;
}

/* Where the fragments' offsets are. */
OPC__FN const uint8_t *opc__log_frags(const opc__log *l) {
    return l->head + opc__log_fixed(l->head_type);
}

OPC__FN void opc__log_meta_queued(const uint8_t *h, opc__msg_meta *m) {
    m->kind = OPC__KIND_OUT;
    memcpy(m->server, h, 32);
    m->level = h[35];
    m->address.family = h[84];
    m->address.port = (uint16_t)opc__buf_be16(h + 86);
    memcpy(m->address.ip, h + 88, 16);
    m->options = h[104];
    m->context_len = opc__buf_be16(h + 106);
    m->attempts_max = opc__buf_be32(h + 108);
    m->expires_s = (int64_t)opc__buf_be64(h + 112);
    m->epoch.counter = opc__buf_be64(h + 120);
    m->epoch.random = opc__buf_be64(h + 128);
    m->number = m->uid;
    m->context = m->dest + m->dest_len;
}

/* From a head that was verified. */
OPC__FN void opc__log_meta_of(const opc__log *l, unsigned type, const uint8_t *h,
                              opc__msg_meta *m) {
    memset(m, 0, sizeof *m);
    m->from_id = h[32];
    m->dest_id = h[33];
    m->flags = h[34];
    m->dest_len = opc__buf_be32(h + 36);
    m->uid = opc__buf_be64(h + 40);
    m->bytes = opc__buf_be64(h + 48);
    m->wire_bytes = opc__buf_be64(h + 56);
    m->time_s = (int64_t)opc__buf_be64(h + 64);
    m->dest = h + opc__log_fixed(type) + 8u * (size_t)opc__buf_be32(h + 72);
    if (type == OPC__OP_QUEUED) {
        opc__log_meta_queued(h, m);
        return;
    }
    memcpy(m->from, h, 32);
    if (type != OPC__OP_STREAM) return;
    m->stream = h[35];
    m->epoch.counter = opc__buf_be64(h + 84);
    m->epoch.random = opc__buf_be64(h + 92);
    m->number = opc__buf_be64(h + 100);
    if (m->flags & OPC__LOG_OWN) {
        m->flags &= (uint8_t)~OPC__LOG_OWN;
        m->dest = (const uint8_t *)l->own;
        m->dest_len = 64;
    }
}

OPC__FN opcomms_err opc__log_meta(opc__store *s, uint64_t ref, opc__msg_meta *out, uint8_t *dest,
                                  uint8_t *context) {
    opc__log *l = opc__log_of(s);
    opc__msg_meta m;
    opcomms_err rc = opc__log_head(l, ref);
    if (rc != OPCOMMS_OK) return rc;
    opc__log_meta_of(l, l->head_type, l->head, &m);
    memcpy(dest, m.dest, m.dest_len);
    m.dest = dest;
    if (context != NULL && m.context_len > 0) memcpy(context, m.context, m.context_len);
    m.context = context;
    *out = m;
    return OPCOMMS_OK;
}

/* Loads and verifies one piece of payload, which lies in the operation at `op`. */
OPC__FN opcomms_err opc__log_piece(opc__log *l, uint64_t op, size_t skip, uint32_t len,
                                   uint32_t want) {
    uint64_t at = op + skip;
    opcomms_err rc;
    if (l->piece_ref == at && l->piece_len == len && len > 0) return OPCOMMS_OK;
    l->piece_len = 0;
    if (len > OPC__FRAG_BYTES) return OPCOMMS_E_LOG_DAMAGED;
    rc = opc__log_get_op(l, op, skip, l->piece, len);
    if (rc != OPCOMMS_OK) return rc;
    if (opc__log_crc(l, l->piece, len) != want) return OPCOMMS_E_LOG_DAMAGED;
    l->piece_ref = at;
    l->piece_len = len;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__log_read_fragment(opc__log *l, uint64_t op_at) {
    uint8_t h[16];
    uint32_t body;
    opcomms_err rc = opc__log_get_op(l, op_at, 0, h, sizeof h);
    if (rc != OPCOMMS_OK) return rc;
    body = opc__buf_be32(h + 4);
    if (h[0] != OPC__OP_FRAGMENT || body < 8) return OPCOMMS_E_LOG_DAMAGED;
    return opc__log_piece(l, op_at, 16, body - 8, opc__buf_be32(h + 8));
}

OPC__FN opcomms_err opc__log_read(opc__store *s, uint64_t ref, uint64_t offset, uint8_t *buf,
                                  size_t len, size_t *got) {
    opc__log *l = opc__log_of(s);
    uint64_t bytes;
    uint32_t frags;
    size_t skip, some;
    opcomms_err rc = opc__log_head(l, ref);
    if (rc != OPCOMMS_OK) return rc;
    bytes = opc__buf_be64(l->head + 48);
    frags = opc__buf_be32(l->head + 72);
    *got = 0;
    if (offset >= bytes || len == 0) return OPCOMMS_OK;
    if (frags == 0) {
        rc = opc__log_piece(l, opc__log_at(ref), 8 + (size_t)l->head_len, (uint32_t)bytes,
                            opc__buf_be32(l->head + 76));
        skip = (size_t)offset;
    } else {
        uint64_t i = offset / OPC__FRAG_BYTES;
        if (i >= frags) return OPCOMMS_E_LOG_DAMAGED;
        rc = opc__log_read_fragment(l, opc__buf_be64(opc__log_frags(l) + 8u * (size_t)i));
        skip = (size_t)(offset % OPC__FRAG_BYTES);
    }
    if (rc != OPCOMMS_OK) return rc;
    if (skip >= l->piece_len) return OPCOMMS_E_LOG_DAMAGED;
    some = l->piece_len - skip;
    if (some > bytes - offset) return OPCOMMS_E_LOG_DAMAGED;
    if (some > len) some = len;
    memcpy(buf, l->piece + skip, some);
    *got = some;
    return OPCOMMS_OK;
}

/* ---- appending ---- */

OPC__FN uint64_t opc__log_offset(const opc__log *l) { /* of its end */
    return l->active.ops > 0 ? l->active.at + l->active.len : l->active.at;
}
OPC__FN uint64_t opc__log_end(opc__store *s) {
    opc__log *l = opc__log_of(s);
    return l->base_position + opc__log_offset(l);
}
OPC__FN uint64_t opc__log_written(opc__store *s) {
    return opc__log_of(s)->base_position + opc__log_of(s)->written;
}
OPC__FN uint64_t opc__log_durable(opc__store *s) {
    return opc__log_of(s)->base_position + opc__log_of(s)->durable;
}

OPC__FN size_t opc__log_room(opc__store *s) {
    opc__log *l = opc__log_of(s);
    return l->switching ? 0 : l->cap - l->active.len;
}

/* Completes the header of a batch. */
OPC__FN void opc__log_seal_batch(const opc__log *l, opc__log_buffer *b, uint32_t seed,
                                 uint64_t synced, uint32_t flags, const uint8_t *subkey) {
    uint8_t *p = b->p;
    if (b->tag > 0 && b->ops > 0) opc__log_shut(l, b, subkey);
    OPCOMMS_ASSERT(b->len >= OPC__LOG_BATCH);
    OPCOMMS_ASSERT(b->len <= OPC__LOG_BATCH_MAX);
    opc__buf_put32(p, OPC__LOG_MAGIC);
    opc__buf_put32(p + 4, b->len);
    opc__buf_put32(p + 8, 0);
    opc__buf_put32(p + 12, b->ops);
    opc__buf_put64(p + 16, b->at);
    opc__buf_put64(p + 24, l->open_counter);
    opc__buf_put64(p + 32, synced);
    opc__buf_put32(p + 40, flags | b->flags);
    opc__buf_put32(p + 44, opc__crc32c(seed, p, 44));
    opc__buf_put32(p + 8, opc__crc32c(seed, p, b->len));
}

OPC__FN void opc__log_seal(opc__log *l, uint32_t flags) {
    OPCOMMS_ASSERT(l->active.len <= l->cap);
    opc__log_seal_batch(l, &l->active, l->seed, l->durable, flags,
                        l->salts > 0 ? l->salt[l->salts - 1].subkey : NULL);
}

/* A batch of no operations, at `at`. */
OPC__FN void opc__log_buffer_new(opc__log_buffer *b, uint64_t at) {
    b->at = at;
    b->len = OPC__LOG_BATCH;
    b->ops = 0;
    b->flags = 0;
    b->shut = 0;
}

/* One operation more into a batch that has room for it; its body is for the caller. */
OPC__FN uint8_t *opc__log_buffer_op(opc__log_buffer *b, unsigned type, size_t body, uint64_t *at) {
    uint8_t *p = b->p + b->len;
    OPCOMMS_ASSERT(!b->shut);
    if (type != OPC__OP_SALT) body += b->tag;
    memset(p, 0, 8);
    p[0] = (uint8_t)type;
    opc__buf_put32(p + 4, (uint32_t)body);
    *at = b->at + b->len;
    b->len += (uint32_t)body + 8u;
    b->ops++;
    if ((type >= OPC__OP_QUEUED && type <= OPC__OP_TAKEN) || type == OPC__OP_STREAM) {
        b->flags |= OPC__LOG_NEWER;
    }
    return p + 8;
}

/* The next batch begins, behind the last one. */
OPC__FN void opc__log_batch_new(opc__log *l, uint64_t at) {
    opc__log_buffer_new(&l->active, at);
    l->held = 0;
    l->held_some = l->held_room = 0;
}

OPC__FN opcomms_err opc__log_write(opc__store *s) {
    opc__log *l = opc__log_of(s);
    opcomms_err rc;
    if (l->failed != OPCOMMS_OK) return OPCOMMS_E_POISONED;
    if (l->flushing || l->active.ops == 0) return OPCOMMS_OK;
    opc__log_seal(l, 0);
    rc = opc__plat_write_all(l->plat, l->file, l->active.at, l->active.p, l->active.len,
                             &l->os_code);
    if (rc != OPCOMMS_OK) return opc__log_poison(l, rc);
    opc__log_batch_new(l, l->active.at + l->active.len);
    l->written = l->active.at;
    return OPCOMMS_OK;
}

/* Makes the active batch have room for that many bytes, if that can be now. */
OPC__FN opcomms_err opc__log_make_room(opc__log *l, size_t bytes) {
    if (l->failed != OPCOMMS_OK) return OPCOMMS_E_POISONED;
    if (bytes > l->cap - OPC__LOG_BATCH) return OPCOMMS_E_LIMIT;
    if (l->switching) return OPCOMMS_E_AGAIN;
    if (bytes <= l->cap - l->active.len) return OPCOMMS_OK;
    if (!l->flushing) { /* written, not synced: makes room at once */
        opcomms_err rc = opc__log_write(&l->base);
        if (rc != OPCOMMS_OK) return rc;
    }
    return bytes <= l->cap - l->active.len ? OPCOMMS_OK : OPCOMMS_E_AGAIN;
}

/* What the limit of the log's size applies to. The rest makes room, or belongs to what does. */
enum { OPC__LOG_ANY = 0, OPC__LOG_NOTE = 1, OPC__LOG_DATA = 2 };

/* Is there room for an operation of that many bytes, and for all of a hold that it belongs to? */
OPC__FN opcomms_err opc__log_limit(opc__log *l, size_t bytes, int limited) {
    if (bytes <= l->held && (limited == OPC__LOG_DATA ? l->held_room : l->held_some)) {
        limited = OPC__LOG_ANY;
    }
    if (limited != OPC__LOG_ANY) {
        uint64_t end = l->active.at + l->active.len, want = l->held > bytes ? l->held : bytes;
        if (end > l->bytes_max || want > l->bytes_max - end) return OPCOMMS_E_FULL;
        if (limited == OPC__LOG_DATA) l->held_room = l->held > 0;
    }
    return OPCOMMS_OK;
}

/* Room for one operation, or why there is none. The body is filled in by the caller. */
OPC__FN opcomms_err opc__log_op(opc__log *l, unsigned type, size_t body, int limited,
                                uint8_t **out, uint64_t *at) {
    size_t bytes = body + 8u + l->active.tag;
    opcomms_err rc = l->failed == OPCOMMS_OK ? opc__log_limit(l, bytes, limited) : OPCOMMS_OK;
    if (rc == OPCOMMS_OK) rc = opc__log_make_room(l, bytes);
    if (rc != OPCOMMS_OK) return rc;
    *out = opc__log_buffer_op(&l->active, type, body, at);
    l->held = l->held > bytes ? l->held - (uint32_t)bytes : 0;
    l->held_some = l->held > 0;
    l->held_room = l->held_room && l->held > 0;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__log_begin(opc__store *s, uint32_t *put) {
    opc__log *l = opc__log_of(s);
    uint32_t i;
    for (i = 0; i < l->puts_max; i++) {
        if (l->put[i] != NULL) continue;
        l->put[i] = l->spare != NULL
                        ? l->spare
                        : (opc__log_put *)opc__mem_alloc(l->mem, sizeof **l->put);
        if (l->put[i] == NULL) return OPCOMMS_E_NOMEM;
        l->spare = NULL;
        l->put[i]->len = 0;
        l->put[i]->frags = l->put[i]->moved = 0;
        l->put[i]->bytes = 0;
        *put = i;
        return OPCOMMS_OK;
    }
    return OPCOMMS_E_LIMIT;
}

OPC__FN opcomms_err opc__log_fragment(opc__log *l, opc__log_put *w) {
    uint8_t *body = NULL;
    uint64_t at = 0;
    opcomms_err rc;
    if (w->frags == OPC__LOG_FRAGS) return OPCOMMS_E_LIMIT;
    rc = opc__log_op(l, OPC__OP_FRAGMENT, (size_t)w->len + 8u, OPC__LOG_DATA, &body, &at);
    if (rc != OPCOMMS_OK) return rc;
    memset(body, 0, 8);
    opc__buf_put32(body, opc__log_crc(l, w->data, w->len));
    memcpy(body + 8, w->data, w->len);
    w->frag[w->frags++] = at;
    w->len = 0;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__log_data(opc__store *s, uint32_t put, const uint8_t *p, size_t n) {
    opc__log *l = opc__log_of(s);
    opc__log_put *w = l->put[put];
    OPCOMMS_ASSERT(w != NULL);
    OPCOMMS_ASSERT(n <= OPC__FRAG_BYTES);
    if (l->failed != OPCOMMS_OK) return OPCOMMS_E_POISONED;
    if (n > OPC__FRAG_BYTES - w->len) { /* at most one fragment fills: AGAIN consumes nothing */
        size_t first = OPC__FRAG_BYTES - w->len;
        uint32_t old = w->len;
        opcomms_err rc;
        memcpy(w->data + w->len, p, first);
        w->len += (uint32_t)first;
        rc = opc__log_fragment(l, w);
        if (rc != OPCOMMS_OK) {
            w->len = old;
            return rc;
        }
        w->bytes += first;
        p += first;
        n -= first;
    }
    memcpy(w->data + w->len, p, n);
    w->len += (uint32_t)n;
    w->bytes += n;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__log_peek(opc__store *s, uint32_t put, uint64_t offset, uint8_t *buf,
                                  size_t len, size_t *got) {
    opc__log *l = opc__log_of(s);
    opc__log_put *w = l->put[put];
    uint64_t i = offset / OPC__FRAG_BYTES;
    size_t skip = (size_t)(offset % OPC__FRAG_BYTES), some;
    const uint8_t *from = w->data;
    size_t have = w->len;
    *got = 0;
    if (offset >= w->bytes) return OPCOMMS_OK;
    if (i < w->frags) {
        opcomms_err rc = opc__log_read_fragment(l, w->frag[i]);
        if (rc != OPCOMMS_OK) return rc;
        from = l->piece;
        have = l->piece_len;
    }
    if (skip >= have) return OPCOMMS_E_LOG_DAMAGED;
    some = have - skip < len ? have - skip : len;
    memcpy(buf, from + skip, some);
    *got = some;
    return OPCOMMS_OK;
}

OPC__FN void opc__log_abort(opc__store *s, uint32_t put) {
    opc__log *l = opc__log_of(s);
    if (l->spare == NULL) {
        l->spare = l->put[put];
    } else {
        opc__mem_free(l->mem, l->put[put], sizeof **l->put);
    }
    l->put[put] = NULL;
}

/* The fixed part of a message's body, without its checksum. */
OPC__FN void opc__log_put_head(uint8_t *b, unsigned type, const opc__msg_meta *m) {
    memset(b, 0, opc__log_fixed(type));
    memcpy(b, type == OPC__OP_QUEUED ? m->server : m->from, 32);
    b[32] = m->from_id;
    b[33] = m->dest_id;
    b[34] = m->flags;
    opc__buf_put32(b + 36, m->dest_len);
    opc__buf_put64(b + 48, m->bytes);
    opc__buf_put64(b + 56, m->wire_bytes);
    opc__buf_put64(b + 64, (uint64_t)m->time_s);
    if (type == OPC__OP_STREAM) {
        b[35] = m->stream;
        opc__buf_put64(b + 84, m->epoch.counter);
        opc__buf_put64(b + 92, m->epoch.random);
        opc__buf_put64(b + 100, m->number);
    }
    if (type != OPC__OP_QUEUED) return;
    b[35] = m->level;
    b[84] = m->address.family;
    opc__buf_put16(b + 86, m->address.port);
    memcpy(b + 88, m->address.ip, 16);
    b[104] = m->options;
    opc__buf_put16(b + 106, (uint16_t)m->context_len);
    opc__buf_put32(b + 108, m->attempts_max);
    opc__buf_put64(b + 112, (uint64_t)m->expires_s);
    opc__buf_put64(b + 120, m->epoch.counter);
    opc__buf_put64(b + 128, m->epoch.random);
}

/* A message whose data is complete, as one operation. `own`: its dest is left out. */
OPC__FN opcomms_err opc__log_message(opc__log *l, opc__log_put *w, unsigned type,
                                     const opc__msg_meta *m, int own, uint64_t *ref) {
    size_t dest = own ? 0 : m->dest_len, context = type == OPC__OP_QUEUED ? m->context_len : 0;
    size_t fixed = opc__log_fixed(type), head = fixed + 8u * (size_t)w->frags + dest + context;
    size_t inline_len = w->frags == 0 ? w->len : 0;
    uint8_t *b = NULL;
    uint32_t i;
    opcomms_err rc = opc__log_op(l, type, head + inline_len, OPC__LOG_DATA, &b, ref);
    if (rc != OPCOMMS_OK) return rc;
    opc__log_put_head(b, type, m);
    if (own) {
        b[34] |= OPC__LOG_OWN;
        opc__buf_put32(b + 36, 0);
    }
    opc__buf_put64(b + 40, ++l->uid);
    opc__buf_put32(b + 72, w->frags);
    if (inline_len > 0) opc__buf_put32(b + 76, opc__log_crc(l, w->data, inline_len));
    for (i = 0; i < w->frags; i++) opc__buf_put64(b + fixed + 8u * i, w->frag[i]);
    if (dest > 0) memcpy(b + head - context - dest, m->dest, dest);
    if (context > 0) memcpy(b + head - context, m->context, context);
    opc__buf_put32(b + 80, opc__log_crc(l, b, head));
    if (inline_len > 0) memcpy(b + head, w->data, inline_len);
    *ref = opc__log_ref(*ref, opc__log_message_bytes(b, head + inline_len, l->active.tag));
    l->live += opc__log_size_of(*ref);
    return OPCOMMS_OK;
}

OPC__FN void opc__log_over(opc__log *l, uint64_t ref) {
    uint64_t bytes = opc__log_size_of(ref);
    l->live -= bytes < l->live ? bytes : l->live;
}

OPC__FN opcomms_err opc__log_commit(opc__store *s, uint32_t put, const opc__msg_meta *meta,
                                    uint64_t *uid, uint64_t *ref, uint64_t *position) {
    opc__log *l = opc__log_of(s);
    opc__log_put *w = l->put[put];
    unsigned type = meta->kind == OPC__KIND_OUT           ? OPC__OP_QUEUED
                    : meta->stream != OPC__STREAM_NONE ? OPC__OP_STREAM
                                                       : OPC__OP_MESSAGE;
    int own;
    opcomms_err rc;
    if (meta->dest_len > 1024u || meta->bytes != w->bytes) return OPCOMMS_E_INVAL;
    if (meta->context_len > OPC__CONTEXT_MAX || meta->stream > OPC__STREAM_DIRECT) {
        return OPCOMMS_E_INVAL;
    }
    own = type == OPC__OP_STREAM && meta->dest_len == 64 && memcmp(meta->dest, l->own, 64) == 0;
    if (w->frags > 0 && w->len > 0) {
        rc = opc__log_fragment(l, w);
        if (rc != OPCOMMS_OK) return rc;
    }
    rc = opc__log_message(l, w, type, meta, own, ref);
    if (rc != OPCOMMS_OK) return rc;
    *uid = l->uid;
    *position = opc__log_end(s);
    opc__log_abort(s, put);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__log_ack(opc__store *s, uint64_t ref, uint64_t uid, uint64_t *position) {
    uint8_t *b = NULL;
    uint64_t at = 0;
    opcomms_err rc = opc__log_op(opc__log_of(s), OPC__OP_ACK, 8, OPC__LOG_ANY, &b, &at);
    if (rc != OPCOMMS_OK) return rc;
    opc__log_over(opc__log_of(s), ref);
    opc__buf_put64(b, uid);
    *position = opc__log_end(s);
    return OPCOMMS_OK;
}

/* The most that the tags of those operations take: acknowledgements are the smallest, messages the
   smallest else; one may be a note without a body. */
OPC__FN size_t opc__log_hold_tags(const opc__log *l, size_t bytes) {
    size_t acks = bytes / 16u;
    if (acks > OPC__LOG_HOLD_ACKS) acks = OPC__LOG_HOLD_ACKS;
    return l->active.tag * (acks + bytes / (8u + OPC__LOG_FIXED) + 1u);
}

OPC__FN opcomms_err opc__log_hold(opc__store *s, size_t bytes) {
    opc__log *l = opc__log_of(s);
    opcomms_err rc;
    bytes += opc__log_hold_tags(l, bytes);
    rc = opc__log_make_room(l, bytes);
    if (rc != OPCOMMS_OK) return rc;
    l->held = (uint32_t)bytes;
    l->held_some = l->held_room = 0;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__log_done(opc__store *s, uint64_t ref, uint64_t uid, int how,
                                  uint64_t *position) {
    unsigned type = how == OPC__DONE_TAKEN ? OPC__OP_TAKEN : OPC__OP_OVER;
    uint8_t *b = NULL;
    uint64_t at = 0;
    opcomms_err rc = opc__log_op(opc__log_of(s), type, 16, OPC__LOG_ANY, &b, &at);
    if (rc != OPCOMMS_OK) return rc;
    opc__log_over(opc__log_of(s), ref);
    memset(b, 0, 16);
    opc__buf_put64(b, uid);
    b[8] = (uint8_t)how;
    *position = opc__log_end(s);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__log_tried(opc__store *s, const opc__try *t, uint64_t *position) {
    unsigned type = t->dead ? OPC__OP_DEAD : OPC__OP_FAILED;
    uint8_t *b = NULL;
    uint64_t at = 0;
    opcomms_err rc = opc__log_op(opc__log_of(s), type, 32, OPC__LOG_ANY, &b, &at);
    if (rc != OPCOMMS_OK) return rc;
    memset(b, 0, 32);
    opc__buf_put64(b, t->uid);
    opc__buf_put32(b + 8, t->attempts);
    opc__buf_put32(b + 12, (uint32_t)t->code);
    b[16] = t->tried;
    opc__buf_put64(b + 24, (uint64_t)t->time_s);
    *position = opc__log_end(s);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__log_copy_write(opc__log *l, opc__log_copy *k) {
    opcomms_err rc;
    if (k->out.ops == 0) return OPCOMMS_OK;
    opc__log_seal_batch(l, &k->out, k->seed, k->synced, 0, k->subkey);
    rc = opc__plat_write_all(l->plat, k->file, k->out.at, k->out.p, k->out.len, &k->os_code);
    if (rc == OPCOMMS_OK) opc__log_buffer_new(&k->out, k->out.at + k->out.len);
    return rc;
}

/* Room in a copy for one operation, whose body the caller fills in. */
OPC__FN opcomms_err opc__log_copy_op(opc__log *l, opc__log_copy *k, unsigned type, size_t body,
                                     uint8_t **out, uint64_t *at) {
    size_t bytes = body + 8u + k->out.tag;
    if (bytes > k->out_cap - k->out.len) {
        opcomms_err rc = opc__log_copy_write(l, k);
        if (rc != OPCOMMS_OK) return rc;
        if (bytes > k->out_cap - OPC__LOG_BATCH) { /* one of a larger program, or of a newer one */
            uint32_t cap = (uint32_t)bytes + OPC__LOG_BATCH;
            uint8_t *p = cap <= OPC__LOG_BATCH_MAX ? (uint8_t *)opc__mem_raw(l->mem, cap) : NULL;
            if (p == NULL) return OPCOMMS_E_NOMEM;
            opc__mem_free(l->mem, k->out.p, k->out_cap);
            k->out.p = p;
            k->out_cap = cap;
        }
    }
    *out = opc__log_buffer_op(&k->out, type, body, at);
    k->copied += bytes;
    return OPCOMMS_OK;
}

OPC__FN int opc__log_is_note(unsigned type) {
    return type == OPC__NOTE_SEEN || type == OPC__NOTE_STATE || type == OPC__NOTE_PEER ||
           type == OPC__NOTE_OPENED;
}

OPC__FN opcomms_err opc__log_note(opc__store *s, unsigned type, const uint8_t *body, size_t n,
                                  uint64_t *position) {
    opc__log *l = opc__log_of(s);
    uint8_t *b = NULL;
    uint64_t at = 0;
    opcomms_err rc;
    if (!opc__log_is_note(type) || n > OPC__NOTE_MAX) return OPCOMMS_E_INVAL;
    if (type == OPC__NOTE_OPENED && n < OPC__LOG_OPENED) return OPCOMMS_E_INVAL;
    if (l->copy != NULL && l->copy->noting) {
        rc = opc__log_copy_op(l, l->copy, type, n, &b, &at);
    } else {
        rc = opc__log_op(l, type, n, OPC__LOG_NOTE, &b, &at);
    }
    if (rc != OPCOMMS_OK) return rc;
    if (n > 0) memcpy(b, body, n);
    *position = opc__log_end(s);
    return OPCOMMS_OK;
}

OPC__FN void opc__log_epoch(opc__store *s, opc__epoch *out) { *out = opc__log_of(s)->epoch; }

/* ---- flushing ---- */

/* The active buffer, complete or without a batch, becomes the sealed one. */
OPC__FN void opc__log_swap(opc__log *l) {
    opc__log_buffer b = l->sealed;
    if (l->active.ops > 0) {
        opc__log_seal(l, 0);
    } else {
        l->active.len = 0; /* only a sync of what was written before */
    }
    l->sealed = l->active;
    l->active = b;
    opc__log_batch_new(l, l->sealed.at + l->sealed.len);
    l->flushing = 1;
    if (l->copy != NULL && !l->copy->dead &&
        l->copy->out.at - l->copy->synced >= OPC__LOG_COPY_SYNC / 2) {
        l->copy_sync = 1;
        l->copy->sync_to = l->copy->out.at;
    }
}

OPC__FN opcomms_err opc__log_flush_begin(opc__store *s) {
    opc__log *l = opc__log_of(s);
    if (l->failed != OPCOMMS_OK) return OPCOMMS_E_POISONED;
    if (l->flushing || (l->active.ops == 0 && l->durable == l->written)) return OPCOMMS_E_AGAIN;
    opc__log_swap(l);
    return OPCOMMS_OK;
}

/* How far ahead of `end` zeros are written: as much again as the log has, within bounds. */
OPC__FN uint64_t opc__log_step(const opc__log *l, uint64_t end) {
    uint64_t step = end < OPC__LOG_AHEAD_MIN ? OPC__LOG_AHEAD_MIN : end;
    if (step > l->ahead) step = l->ahead;
    if (end >= l->bytes_max) return 0;
    return step < l->bytes_max - end ? step : l->bytes_max - end;
}

/* For the time when nobody waits: a flush that writes zeros ahead, when less than half a step of
   them is left. A log that nothing was appended to stays as it is. */
OPC__FN opcomms_err opc__log_ahead_begin(opc__store *s) {
    opc__log *l = opc__log_of(s);
    uint64_t end = l->active.at, left;
    if (l->failed != OPCOMMS_OK) return OPCOMMS_E_POISONED;
    if (l->flushing || l->active.ops > 0 || end == l->opened) return OPCOMMS_E_AGAIN;
    left = l->zeroed > end ? l->zeroed - end : 0;
    if (left >= (opc__log_step(l, end) + 1) / 2) return OPCOMMS_E_AGAIN;
    l->filling = 1;
    opc__log_swap(l);
    return OPCOMMS_OK;
}

/* Zeros behind the sealed buffer. No room for them is no error: nothing depends on them. */
OPC__FN void opc__log_fill(opc__log *l) {
    uint8_t zero[16384];
    uint64_t end = l->sealed.at + l->sealed.len, to = end + opc__log_step(l, end);
    uint64_t at = l->zeroed > end ? l->zeroed : end;
    int os = 0;
    memset(zero, 0, sizeof zero);
    while (at < to) {
        size_t n = sizeof zero - (size_t)(at % sizeof zero);
        if (n > to - at) n = (size_t)(to - at);
        if (opc__plat_write_all(l->plat, l->file, at, zero, n, &os) != OPCOMMS_OK) {
            l->ahead = 0; /* the log then grows batch by batch */
            break;
        }
        at += n;
    }
    l->zeroed = at;
}

OPC__FN const char *opc__log_new_name(opc__log *l) { /* until it is called with another one */
    memcpy(l->name + l->name_len, ".new", 5);
    return l->name;
}
OPC__FN const char *opc__log_name(opc__log *l) {
    l->name[l->name_len] = 0;
    return l->name;
}

/* After a renaming that failed: whose is the name? Each file has a salt of its own. */
OPC__FN int opc__log_who(opc__log *l) {
    intptr_t file = OPCOMMS_NO_HANDLE;
    uint8_t h[OPC__LOG_HEADER];
    int os = 0, who = OPC__LOG_UNKNOWN;
    if (l->plat->file_open(l->plat->user, l->dir, opc__log_name(l), 0, &file, &os) != OPCOMMS_OK) {
        return OPC__LOG_UNKNOWN;
    }
    if (opc__log_file_read(l->plat, file, 0, h, sizeof h) == OPCOMMS_OK) {
        size_t now = (opc__buf_be64(l->slot + 16) & 1u) * 2048u;
        size_t then = (opc__buf_be64(l->copy->slot + 16) & 1u) * 2048u;
        if (memcmp(h + now, l->slot, l->slot_bytes) == 0) who = OPC__LOG_KEPT;
        if (memcmp(h + then, l->copy->slot, l->copy->slot_bytes) == 0) who = OPC__LOG_TAKEN;
    }
    l->plat->file_close(l->plat->user, file);
    return who;
}

/* The copy is complete: it gets its slot and is synced. */
OPC__FN opcomms_err opc__log_copy_run(opc__log *l) {
    opc__log_copy *k = l->copy;
    uint64_t at = (opc__buf_be64(k->slot + 16) & 1u) * 2048u;
    opcomms_err rc =
        opc__plat_write_all(l->plat, k->file, at, k->slot, k->slot_bytes, &k->os_code);
    return rc == OPCOMMS_OK ? l->plat->file_sync(l->plat->user, k->file, &k->os_code) : rc;
}

/* A backup's name while it is made, and then. */
OPC__FN const char *opc__log_part_name(opc__log_copy *k) {
    memcpy(k->name + k->name_len, ".part", 6);
    return k->name;
}

OPC__FN opcomms_err opc__log_save_run(opc__log *l) {
    const opcomms_platform *plat = l->plat;
    opc__log_copy *k = l->copy;
    char to[OPC__PATH_MAX];
    opcomms_err rc = opc__log_copy_run(l);
    memcpy(to, k->name, k->name_len);
    to[k->name_len] = 0;
    if (rc == OPCOMMS_OK) rc = opc__plat_unused(plat, k->dir, to);
    if (rc == OPCOMMS_OK) {
        rc = plat->file_rename(plat->user, k->dir, opc__log_part_name(k), to, &k->os_code);
    }
    if (rc != OPCOMMS_OK) return rc;
    rc = plat->dir_sync(plat->user, k->dir, &k->os_code);
    if (rc != OPCOMMS_OK) {
        int os = 0;
        (void)plat->file_remove(plat->user, k->dir, to, &os); /* the first error is told */
    }
    return rc;
}

/* Then it gets the log's name. */
OPC__FN opcomms_err opc__log_switch_run(opc__log *l) {
    const opcomms_platform *plat = l->plat;
    opc__log_copy *k = l->copy;
    char to[OPC__PATH_MAX];
    opcomms_err rc = opc__log_copy_run(l);
    l->switch_name = OPC__LOG_KEPT;
    if (rc != OPCOMMS_OK) return rc;
    memcpy(to, l->name, l->name_len);
    to[l->name_len] = 0;
    rc = plat->file_rename(plat->user, l->dir, opc__log_new_name(l), to, &k->os_code);
    l->switch_name = rc == OPCOMMS_OK ? OPC__LOG_TAKEN : opc__log_who(l);
    if (l->switch_name != OPC__LOG_TAKEN) return rc;
    return plat->dir_sync(plat->user, l->dir, &l->flush_os);
}

/* Touches nothing that the lock guards: the sealed buffer is out of everybody's way. When the
   space ahead is used up, more is made here. */
OPC__FN opcomms_err opc__log_flush_run(opc__store *s) {
    opc__log *l = opc__log_of(s);
    opcomms_err rc;
    if (l->switching) return opc__log_switch_run(l);
    rc = opc__plat_write_all(l->plat, l->file, l->sealed.at, l->sealed.p, l->sealed.len,
                             &l->flush_os);
    if (rc != OPCOMMS_OK) return rc;
    if (l->filling || (l->ahead > 0 && l->sealed.at + l->sealed.len > l->zeroed)) opc__log_fill(l);
    rc = l->plat->file_sync(l->plat->user, l->file, &l->flush_os);
    if (rc != OPCOMMS_OK) return rc;
    if (l->saving) {
        l->saved = opc__log_save_run(l);
    } else if (l->copy_sync) {
        int os = 0;
        if (l->plat->file_sync(l->plat->user, l->copy->file, &os) != OPCOMMS_OK) l->copy_sync = -1;
    }
    return rc;
}

OPC__FN void opc__log_copy_free(opc__log *l) {
    opc__log_copy *k = l->copy;
    if (k == NULL) return;
    if (k->file != OPCOMMS_NO_HANDLE) l->plat->file_close(l->plat->user, k->file);
    if (k->dir != OPCOMMS_NO_HANDLE) l->plat->dir_close(l->plat->user, k->dir);
    opc__mem_free(l->mem, k->in, k->in_cap);
    opc__mem_free(l->mem, k->out.p, k->out_cap);
    opc__mem_free_wiped(l->mem, k->plain, k->plain_cap);
    opc__mem_free_wiped(l->mem, k, sizeof *k);
    l->copy = NULL;
}

/* Gives a copy up; while a flush runs that may be busy with it, at its end. */
OPC__FN void opc__log_copy_drop(opc__log *l) {
    int os = 0;
    if (l->copy == NULL) return;
    l->copy->dead = 1;
    if (l->flushing) return;
    if (l->copy->backup) {
        opc__log_copy *k = l->copy;
        if (k->file != OPCOMMS_NO_HANDLE) {
            l->plat->file_close(l->plat->user, k->file);
            k->file = OPCOMMS_NO_HANDLE;
            (void)l->plat->file_remove(l->plat->user, k->dir, opc__log_part_name(k), &os);
        }
        if (l->saved == OPCOMMS_E_AGAIN) l->saved = OPCOMMS_E_IO;
        opc__log_copy_free(l);
        return;
    }
    opc__log_copy_free(l);
    /* Left behind, it is removed by the next opening; it is never taken for the log. */
    (void)l->plat->file_remove(l->plat->user, l->dir, opc__log_new_name(l), &os);
    l->retry_us = l->plat->now_us(l->plat->user) + OPC__LOG_RETRY_US;
    if (l->owner.switched != NULL) l->owner.switched(l->owner.user, 0);
}

/* The copy is the log now, and synced. */
OPC__FN void opc__log_switch(opc__log *l) {
    opc__log_copy *k = l->copy;
    uint64_t end = k->out.at, position = l->base_position + l->active.at;
    uint32_t i;
    OPCOMMS_ASSERT(l->active.ops == 0);
    OPCOMMS_ASSERT(k->out.ops == 0);
    l->plat->file_close(l->plat->user, l->file);
    l->file = k->file;
    k->file = OPCOMMS_NO_HANDLE;
    l->seed = k->seed;
    memcpy(l->slot, k->slot, sizeof l->slot);
    l->slot_bytes = k->slot_bytes;
    l->base_position = position - end;
    l->written = l->durable = l->opened = l->zeroed = end;
    opc__log_batch_new(l, end);
    l->crypt = k->crypt;
    l->active.tag = l->sealed.tag = l->crypt.tag;
    if (k->convert) l->convert = 0;
    l->salts = l->op_len = 0;
    if (l->crypt.tag > 0) {
        OPCOMMS_ASSERT(l->salts_cap > 0);
        l->salt[0].at = OPC__LOG_HEADER + OPC__LOG_BATCH;
        memcpy(l->salt[0].subkey, k->subkey, sizeof k->subkey);
        l->salts = 1;
    }
    l->fixed = end - OPC__LOG_HEADER > l->live ? end - OPC__LOG_HEADER - l->live : 0;
    l->head_len = l->piece_len = l->read_len = 0;
    for (i = 0; i < l->puts_max; i++) {
        opc__log_put *w = l->put[i];
        if (w == NULL) continue;
        OPCOMMS_ASSERT(w->moved == w->frags);
        memcpy(w->frag, w->to, sizeof w->to[0] * w->frags);
        w->moved = 0;
    }
    opc__log_copy_free(l);
    if (l->owner.switched != NULL) l->owner.switched(l->owner.user, 1);
}

OPC__FN opcomms_err opc__log_flush_end(opc__store *s, opcomms_err result) {
    opc__log *l = opc__log_of(s);
    int switched = l->switching, synced = l->copy_sync, saved = l->saving;
    l->flushing = l->filling = l->switching = l->copy_sync = l->saving = 0;
    if (switched) {
        if (result == OPCOMMS_OK) {
            opc__log_switch(l);
            return OPCOMMS_OK;
        }
        if (l->switch_name == OPC__LOG_KEPT) { /* the log is as it was */
            opc__log_copy_drop(l);
            return OPCOMMS_OK;
        }
        /* Either may be found under the name from now on. Both hold all that was acknowledged as
           long as nothing more is. */
        l->os_code = l->flush_os;
        return opc__log_poison(l, result);
    }
    if (result != OPCOMMS_OK) {
        l->os_code = l->flush_os;
        return opc__log_poison(l, result);
    }
    l->written = l->sealed.at + l->sealed.len;
    l->durable = l->written;
    if (saved && l->saved == OPCOMMS_OK) {
        opc__log_copy_free(l);
        return OPCOMMS_OK;
    }
    if (saved) l->copy->dead = 1;
    if (synced > 0) l->copy->synced = l->copy->sync_to;
    if (synced < 0 || (l->copy != NULL && l->copy->dead)) opc__log_copy_drop(l);
    return OPCOMMS_OK;
}

/* ---- compaction ---- */

/* The CRC of n bytes with the four at 8 as zero. */
OPC__FN uint32_t opc__log_batch_crc(const opc__log *l, const uint8_t *p, size_t n) {
    static const uint8_t zero[4] = {0, 0, 0, 0};
    uint32_t crc = opc__log_crc(l, p, 8);
    return opc__crc32c(opc__crc32c(crc, zero, 4), p + 12, n - 12);
}

/* At least len bytes of the log from `at` on, which are written, into *p. */
OPC__FN opcomms_err opc__log_copy_window(opc__log *l, opc__log_copy *k, uint64_t at, uint32_t len,
                                         uint8_t **p) {
    uint64_t have = at >= k->in_at && at - k->in_at < k->in_len ? k->in_len - (at - k->in_at) : 0;
    if (len > l->written - at || len > OPC__LOG_BATCH_MAX) return OPCOMMS_E_LOG_DAMAGED;
    if (have < len) {
        uint64_t n = l->written - at;
        opcomms_err rc;
        if (len > k->in_cap) {
            uint8_t *grown = (uint8_t *)opc__mem_raw(l->mem, len);
            if (grown == NULL) return OPCOMMS_E_NOMEM;
            opc__mem_free(l->mem, k->in, k->in_cap);
            k->in = grown;
            k->in_cap = len;
        }
        if (n > k->in_cap) n = k->in_cap;
        k->in_len = 0;
        rc = opc__log_file_read(l->plat, l->file, at, k->in, (size_t)n);
        if (rc != OPCOMMS_OK) return rc;
        k->in_at = at;
        k->in_len = (uint32_t)n;
        k->copied += n / 4; /* reading is work too */
    }
    *p = k->in + (at - k->in_at);
    return OPCOMMS_OK;
}

/* A fragment, whose new place is then known. */
OPC__FN opcomms_err opc__log_copy_fragment(opc__log *l, opc__log_copy *k, uint64_t from,
                                           uint64_t *to) {
    uint8_t *b = NULL;
    opcomms_err rc = opc__log_read_fragment(l, from);
    if (rc == OPCOMMS_OK) {
        rc = opc__log_copy_op(l, k, OPC__OP_FRAGMENT, l->piece_len + 8u, &b, to);
    }
    if (rc != OPCOMMS_OK) return rc;
    memset(b, 0, 8);
    opc__buf_put32(b, opc__crc32c(k->seed, l->piece, l->piece_len));
    memcpy(b + 8, l->piece, l->piece_len);
    return OPCOMMS_OK;
}

/* A message, with its fragments before it. OPCOMMS_E_AGAIN: that was enough for one step. */
OPC__FN opcomms_err opc__log_copy_message(opc__log *l, opc__log_copy *k, unsigned type,
                                          const uint8_t *body, uint32_t n) {
    size_t len = opc__log_head_len(type, body, n), fixed = opc__log_fixed(type), i;
    uint64_t uid = len > 0 ? opc__buf_be64(body + 40) : 0, at = 0;
    uint32_t frags = len > 0 ? opc__buf_be32(body + 72) : 0;
    uint8_t *b = NULL;
    opcomms_err rc;
    if (len == 0) return OPCOMMS_E_LOG_DAMAGED;
    if (l->owner.live(l->owner.user, uid) == 0) {
        k->frags = 0;
        return OPCOMMS_OK;
    }
    if (frags > OPC__LOG_FRAGS) return OPCOMMS_E_LIMIT;
    while (k->frags < frags) {
        if (k->copied >= k->most) return OPCOMMS_E_AGAIN;
        rc = opc__log_copy_fragment(l, k, opc__buf_be64(body + fixed + 8u * (size_t)k->frags),
                                    &k->frag[k->frags]);
        if (rc != OPCOMMS_OK) return rc;
        k->frags++;
    }
    rc = opc__log_copy_op(l, k, type, n, &b, &at);
    if (rc != OPCOMMS_OK) return rc;
    memcpy(b, body, n);
    for (i = 0; i < frags; i++) opc__buf_put64(b + fixed + 8u * i, k->frag[i]);
    if (frags == 0 && n > len) opc__buf_put32(b + 76, opc__crc32c(k->seed, b + len, n - len));
    opc__buf_put32(b + 80, 0);
    opc__buf_put32(b + 80, opc__crc32c(k->seed, b, len));
    k->frags = 0;
    if (l->owner.moved != NULL && !k->backup) {
        l->owner.moved(l->owner.user, uid,
                       opc__log_ref(at, opc__log_message_bytes(b, n, k->out.tag)));
    }
    return OPCOMMS_OK;
}

/* Does this operation, at `at`, still matter? Messages and fragments aside. */
OPC__FN int opc__log_copy_wanted(opc__log *l, const opc__log_copy *k, unsigned type,
                                 const uint8_t *body, uint32_t n, uint64_t at) {
    int tries;
    switch (type) {
    case OPC__OP_FRAGMENT: return 0; /* with its message */
    case OPC__OP_SALT: return 0;     /* the copy has its own */
    case OPC__OP_ACK:
    case OPC__OP_OVER:
    case OPC__OP_TAKEN: return at >= k->begun;
    case OPC__OP_FAILED:
    case OPC__OP_DEAD:
        if (n != 32) return 0;
        tries = l->owner.live(l->owner.user, opc__buf_be64(body));
        return tries > 0 && opc__buf_be32(body + 8) + 1 >= (uint32_t)tries;
    case OPC__OP_CHECKPOINT: return n > 8; /* what a newer version added */
    default: return !opc__log_is_note(type) || l->owner.notes == NULL;
    }
}

/* The body of an operation of the log, which ends with the next one. */
OPC__FN opcomms_err opc__log_copy_plain(opc__log *l, opc__log_copy *k, const uint8_t *op,
                                        uint64_t at, const uint8_t **body, uint32_t *n) {
    *body = op + 8;
    *n = opc__buf_be32(op + 4);
    if (l->crypt.tag == 0 || op[0] == OPC__OP_SALT || op[0] == OPC__OP_FRAGMENT) return OPCOMMS_OK;
    if (*n > k->plain_cap) {
        uint32_t cap = *n > OPC__LOG_OP_MAX ? *n : OPC__LOG_OP_MAX;
        uint8_t *p = (uint8_t *)opc__mem_raw(l->mem, cap);
        if (p == NULL) return OPCOMMS_E_NOMEM;
        opc__mem_free_wiped(l->mem, k->plain, k->plain_cap);
        k->plain = p;
        k->plain_cap = cap;
    }
    *body = k->plain;
    return opc__log_unshut(l, at, op, k->plain, n);
}

/* One operation of the log, at `at`. */
OPC__FN opcomms_err opc__log_copy_one(opc__log *l, opc__log_copy *k, const uint8_t *op,
                                      uint64_t at) {
    const uint8_t *body = NULL;
    uint32_t n = 0;
    uint8_t *b = NULL;
    opcomms_err rc = opc__log_copy_plain(l, k, op, at, &body, &n);
    if (rc != OPCOMMS_OK) return rc;
    if (opc__log_fixed(op[0]) != 0) return opc__log_copy_message(l, k, op[0], body, n);
    if (!opc__log_copy_wanted(l, k, op[0], body, n, at)) return OPCOMMS_OK;
    rc = opc__log_copy_op(l, k, op[0], n, &b, &at);
    if (rc == OPCOMMS_OK && n > 0) memcpy(b, body, n);
    return rc;
}

/* Batches of the log in their order, as long as the step lasts or to the end of what is written.
   Each was verified when it was opened, or is ours; the disk may have changed its mind since. */
OPC__FN opcomms_err opc__log_copy_walk(opc__log *l, opc__log_copy *k) {
    while (k->at < l->written && k->copied < k->most) {
        uint8_t *p = NULL;
        uint32_t len, n;
        opcomms_err rc = opc__log_copy_window(l, k, k->at, OPC__LOG_BATCH, &p);
        if (rc != OPCOMMS_OK) return rc;
        len = opc__buf_be32(p + 4);
        if (opc__buf_be32(p) != OPC__LOG_MAGIC || len < OPC__LOG_BATCH) {
            return OPCOMMS_E_LOG_DAMAGED;
        }
        rc = opc__log_copy_window(l, k, k->at, len, &p);
        if (rc != OPCOMMS_OK) return rc;
        if (k->op == 0) {
            if (opc__buf_be32(p + 8) != opc__log_batch_crc(l, p, len)) return OPCOMMS_E_LOG_DAMAGED;
            k->op = OPC__LOG_BATCH;
        }
        while (k->op < len) {
            if (k->copied >= k->most) return OPCOMMS_OK;
            n = len - k->op >= 8 ? opc__buf_be32(p + k->op + 4) : UINT32_MAX;
            if (n > len - k->op - 8) return OPCOMMS_E_LOG_DAMAGED;
            rc = opc__log_copy_one(l, k, p + k->op, k->at + k->op);
            if (rc == OPCOMMS_E_AGAIN) return OPCOMMS_OK;
            if (rc != OPCOMMS_OK) return rc;
            k->op += 8 + n;
        }
        k->at += len;
        k->op = 0;
    }
    return OPCOMMS_OK;
}

/* The fragments of what is being received. */
OPC__FN opcomms_err opc__log_copy_puts(opc__log *l, opc__log_copy *k) {
    uint32_t i;
    for (i = 0; i < l->puts_max && !k->backup; i++) {
        opc__log_put *w = l->put[i];
        while (w != NULL && w->moved < w->frags) {
            opcomms_err rc;
            if (k->copied >= k->most) return OPCOMMS_OK;
            rc = opc__log_copy_fragment(l, k, w->frag[w->moved], &w->to[w->moved]);
            if (rc != OPCOMMS_OK) return rc;
            w->moved++;
        }
    }
    return OPCOMMS_OK;
}

/* How many bytes are not in the copy yet, of batches and of what is being received. */
OPC__FN uint64_t opc__log_copy_left(const opc__log *l, const opc__log_copy *k) {
    uint64_t left = opc__log_offset(l) - k->at;
    uint32_t i;
    for (i = 0; i < l->puts_max && !k->backup; i++) {
        const opc__log_put *w = l->put[i];
        if (w != NULL) left += (uint64_t)(w->frags - w->moved) * (OPC__FRAG_BYTES + 16u);
    }
    return left;
}

/* What ends a copy: the notes anew, the number floor, the slot. */
OPC__FN opcomms_err opc__log_copy_end(opc__log *l, opc__log_copy *k) {
    uint64_t at = 0, floor = l->uid + (l->weak ? OPC__LOG_UID_SKIP : 0);
    uint8_t *b = NULL;
    opcomms_err rc = OPCOMMS_OK;
    if (l->owner.notes != NULL) {
        k->noting = 1;
        rc = l->owner.notes(l->owner.user);
        k->noting = 0;
        if (rc == OPCOMMS_OK) {
            rc = opc__log_copy_op(l, k, OPC__NOTE_OPENED, OPC__LOG_OPENED, &b, &at);
        }
        if (rc != OPCOMMS_OK) return rc;
        memcpy(b, l->note, OPC__LOG_OPENED);
    }
    rc = opc__log_copy_op(l, k, OPC__OP_CHECKPOINT, 8, &b, &at);
    if (rc != OPCOMMS_OK) return rc;
    opc__buf_put64(b, l->uid);
    rc = opc__log_copy_write(l, k);
    if (rc != OPCOMMS_OK) return rc;
    opc__buf_put64(k->slot + 112, floor);
    opc__buf_put64(k->slot + 120, k->out.at);
    opc__buf_put32(k->slot + k->slot_bytes - 4, opc__crc32c(0, k->slot, k->slot_bytes - 4));
    return OPCOMMS_OK;
}

/* A new file with an empty header: beside the log, or where a backup is to be. */
OPC__FN opcomms_err opc__log_copy_file(opc__log *l, opc__log_copy *k, const char *path) {
    const uint32_t mode = OPCOMMS_FILE_WRITE | OPCOMMS_FILE_CREATE | OPCOMMS_FILE_EXCLUSIVE |
                          OPCOMMS_FILE_PRIVATE;
    char dir_path[OPC__PATH_MAX];
    uint8_t zero[OPC__LOG_HEADER];
    intptr_t dir = l->dir;
    const char *name = NULL;
    opcomms_err rc = OPCOMMS_OK;
    if (path != NULL) {
        rc = opc__plat_split(path, dir_path, sizeof dir_path, &name);
        if (rc != OPCOMMS_OK) return rc;
        k->name_len = strlen(name);
        if (k->name_len > sizeof k->name - OPC__LOG_SUFFIX) return OPCOMMS_E_INVAL;
        memcpy(k->name, name, k->name_len);
        rc = l->plat->dir_open(l->plat->user, dir_path, &k->dir, &k->os_code);
        if (rc == OPCOMMS_OK) rc = opc__plat_unused(l->plat, k->dir, name);
        if (rc != OPCOMMS_OK) return rc;
        dir = k->dir;
        name = opc__log_part_name(k); /* of a backup that was cut short: usually there is none */
        (void)l->plat->file_remove(l->plat->user, dir, name, &k->os_code);
    } else {
        name = opc__log_new_name(l);
    }
    rc = l->plat->file_open(l->plat->user, dir, name, mode, &k->file, &k->os_code);
    memset(zero, 0, sizeof zero);
    if (rc != OPCOMMS_OK) return rc;
    return opc__plat_write_all(l->plat, k->file, 0, zero, sizeof zero, &k->os_code);
}

/* How a copy is encrypted: as the log, or as it shall be. Its salt comes first in it. */
OPC__FN opcomms_err opc__log_copy_crypt(opc__log *l, opc__log_copy *k) {
    uint8_t *b = NULL;
    uint64_t at = 0;
    opcomms_err rc;
    k->convert = l->convert && !k->backup;
    k->crypt = k->convert ? l->next : l->crypt;
    k->out.tag = k->crypt.tag;
    memcpy(k->slot + 128, k->crypt.field, sizeof k->crypt.field);
    if (k->crypt.tag == 0) return OPCOMMS_OK;
    rc = opc__log_copy_op(l, k, OPC__OP_SALT, OPC__LOG_SALT, &b, &at);
    if (rc != OPCOMMS_OK) return rc;
    OPCOMMS_ASSERT(at == OPC__LOG_HEADER + OPC__LOG_BATCH);
    if (l->plat->random(l->plat->user, b, OPC__LOG_SALT) != OPCOMMS_OK) return OPCOMMS_E_RANDOM;
    opc__log_derive(&k->crypt, b, l->open_counter, k->subkey);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__log_copy_begin(opc__log *l, const char *path) {
    opc__log_copy *k = (opc__log_copy *)opc__mem_alloc(l->mem, sizeof *k);
    opcomms_err rc = OPCOMMS_E_NOMEM;
    uint32_t i;
    l->copy = k;
    if (k == NULL) return rc;
    for (i = 0; i < l->puts_max; i++) { /* of a copy that was given up */
        if (l->put[i] != NULL) l->put[i]->moved = 0;
    }
    k->file = k->dir = OPCOMMS_NO_HANDLE;
    k->backup = path != NULL;
    k->in_cap = l->cap;
    k->out_cap = l->cap;
    k->in = (uint8_t *)opc__mem_raw(l->mem, k->in_cap);
    k->out.p = (uint8_t *)opc__mem_raw(l->mem, k->out_cap);
    if (k->in == NULL || k->out.p == NULL) return rc;
    memcpy(k->slot, l->slot, sizeof k->slot);
    k->slot_bytes = l->slot_bytes;
    opc__buf_put64(k->slot + 16, opc__buf_be64(l->slot + 16) + 1);
    rc = l->plat->random(l->plat->user, k->slot + 80, 32);
    if (rc != OPCOMMS_OK) return OPCOMMS_E_RANDOM;
    k->seed = opc__crc32c(0, k->slot + 80, 32);
    k->at = OPC__LOG_HEADER;
    k->begun = k->end_seen = opc__log_offset(l);
    opc__log_buffer_new(&k->out, OPC__LOG_HEADER);
    rc = opc__log_copy_crypt(l, k);
    return rc == OPCOMMS_OK ? opc__log_copy_file(l, k, path) : rc;
}

/* Is there enough to gain? */
OPC__FN int opc__log_worth(const opc__log *l) {
    uint64_t end = opc__log_offset(l), used = end - OPC__LOG_HEADER, kept = l->live + l->fixed;
    uint64_t dead = used > kept ? used - kept : 0;
    if (l->retry_us != 0 && l->plat->now_us(l->plat->user) < l->retry_us) return 0;
    if (l->convert || l->salts > OPC__LOG_SALTS) return 1;
    if (dead > l->dead_min && dead > used / 2) return 1;
    return dead > l->bytes_max / 16 && end > l->bytes_max - l->bytes_max / 8;
}

/* One step of a copy; when little is left, all of it. */
OPC__FN opcomms_err opc__log_copy_step(opc__log *l, opc__log_copy *k, int *flush) {
    uint64_t end = opc__log_offset(l);
    opcomms_err rc;
    int last = !l->flushing && opc__log_copy_left(l, k) <= l->slice + l->slice / 2;
    if (last || k->at == l->written) { /* nothing happens while a flush runs */
        rc = opc__log_write(&l->base);
        if (rc != OPCOMMS_OK) return rc;
    }
    /* More than what came since the step before, or it would never end. */
    k->most = (last ? 2u : 1u) * (uint64_t)l->slice + 2 * (end - k->end_seen);
    k->copied = 0;
    k->end_seen = end;
    rc = opc__log_copy_walk(l, k);
    if (rc == OPCOMMS_OK && k->at == l->written) rc = opc__log_copy_puts(l, k);
    if (rc != OPCOMMS_OK) return rc;
    if (last && opc__log_copy_left(l, k) == 0) {
        rc = opc__log_copy_end(l, k);
        if (rc != OPCOMMS_OK) return rc;
        if (k->backup) {
            opc__log_swap(l);
            l->saving = 1;
        } else {
            l->flushing = l->switching = 1;
        }
        *flush = 1;
        return OPCOMMS_OK;
    }
    if (!l->flushing && k->out.at - k->synced >= OPC__LOG_COPY_SYNC) {
        opc__log_swap(l);
        *flush = 1;
    }
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__log_compact(opc__store *s, int force, int *flush) {
    opc__log *l = opc__log_of(s);
    opcomms_err rc;
    *flush = 0;
    if (l->failed != OPCOMMS_OK) return OPCOMMS_E_POISONED;
    if (l->owner.live == NULL || l->switching || l->saving) return OPCOMMS_E_AGAIN;
    if (l->copy == NULL) {
        if (!force && !opc__log_worth(l)) return OPCOMMS_E_AGAIN;
        rc = opc__log_copy_begin(l, NULL);
    } else if (l->copy->dead || (l->flushing && l->copy->at == l->written)) {
        return OPCOMMS_E_AGAIN;
    } else {
        rc = opc__log_copy_step(l, l->copy, flush);
    }
    if (rc == OPCOMMS_OK) return rc;
    if (l->failed != OPCOMMS_OK) rc = OPCOMMS_E_POISONED;
    if (l->copy != NULL && l->copy->backup) l->saved = rc;
    opc__log_copy_drop(l);
    return rc;
}

OPC__FN opcomms_err opc__log_backup(opc__store *s, const char *path) {
    opc__log *l = opc__log_of(s);
    opcomms_err rc;
    if (path == NULL && l->saved != OPCOMMS_E_AGAIN) return l->saved;
    if (l->failed != OPCOMMS_OK) return OPCOMMS_E_POISONED;
    if (l->owner.live == NULL) return OPCOMMS_E_UNSUPPORTED;
    if (path == NULL || l->copy != NULL) return OPCOMMS_E_AGAIN;
    l->saved = OPCOMMS_E_AGAIN;
    rc = opc__log_copy_begin(l, path);
    if (rc == OPCOMMS_OK) return rc;
    l->saved = rc;
    opc__log_copy_drop(l);
    return rc;
}

OPC__FN void opc__log_space(opc__store *s, opc__space *out) {
    const opc__log *l = opc__log_of(s);
    out->used = opc__log_offset(l);
    out->limit = l->bytes_max;
    out->live = l->live;
}

OPC__FN uint64_t opc__log_bytes(opc__store *s) { return opc__log_offset(opc__log_of(s)); }

OPC__FN void opc__log_free(opc__log *l) {
    uint32_t i;
    opc__log_copy_free(l);
    if (l->file != OPCOMMS_NO_HANDLE) l->plat->file_close(l->plat->user, l->file);
    if (l->lock != OPCOMMS_NO_HANDLE) l->plat->file_close(l->plat->user, l->lock);
    if (l->dir != OPCOMMS_NO_HANDLE) l->plat->dir_close(l->plat->user, l->dir);
    for (i = 0; l->put != NULL && i < l->puts_max; i++) {
        opc__mem_free(l->mem, l->put[i], sizeof **l->put);
    }
    opc__mem_free(l->mem, l->spare, sizeof *l->spare);
    opc__mem_free(l->mem, l->put, (size_t)l->puts_max * sizeof *l->put);
    opc__mem_free(l->mem, l->active.p, l->cap);
    opc__mem_free(l->mem, l->sealed.p, l->cap);
    opc__mem_free(l->mem, l->head, OPC__LOG_HEAD_MAX);
    opc__mem_free(l->mem, l->piece, OPC__FRAG_BYTES);
    opc__mem_free(l->mem, l->read, OPC__LOG_READ);
    opc__mem_free_wiped(l->mem, l->op, 2 * OPC__LOG_OP_MAX);
    opc__mem_free_wiped(l->mem, l->salt, l->salts_cap * sizeof *l->salt);
    opc__mem_free(l->mem, l->name, l->name_len + OPC__LOG_SUFFIX);
    opc__mem_free_wiped(l->mem, l, sizeof *l);
}

/* Syncs, records that in a last batch, and lets go of the lock. */
OPC__FN opcomms_err opc__log_close(opc__store *s) {
    opc__log *l = opc__log_of(s);
    opcomms_err rc = l->failed;
    OPCOMMS_ASSERT(!l->flushing);
    l->owner.switched = NULL; /* the owner is at its end too */
    opc__log_copy_drop(l);
    l->ahead = 0;
    if (rc == OPCOMMS_OK) {
        rc = opc__log_flush_begin(s);
        if (rc == OPCOMMS_OK) rc = opc__log_flush_end(s, opc__log_flush_run(s));
        if (rc == OPCOMMS_E_AGAIN) rc = OPCOMMS_OK;
    }
    if (rc == OPCOMMS_OK) {
        opc__log_seal(l, OPC__LOG_CLOSED);
        rc = opc__plat_write_all(l->plat, l->file, l->active.at, l->active.p, l->active.len,
                                 &l->os_code);
        if (rc == OPCOMMS_OK) rc = l->plat->file_sync(l->plat->user, l->file, &l->os_code);
    }
    opc__log_free(l);
    return rc;
}

/* ---- opening ---- */

/* What opening learns. */
typedef struct opc__log_scan {
    uint8_t *buf; /* the file from buf_at on */
    size_t buf_len;
    size_t buf_cap; /* holds any batch the file can hold */
    uint8_t *plain; /* of an encrypted log: as much again, for an operation */
    uint64_t buf_at;
    uint64_t size;
    uint64_t end;     /* behind the last batch of the unbroken row */
    uint64_t used;    /* only zeros from here on */
    uint64_t synced;  /* D */
    uint64_t counter; /* the highest open counter seen */
    uint64_t uid_last;
    uint8_t **chunk; /* messages seen, ascending, as opc__log_entry has them */
    size_t chunks;   /* with memory */
    size_t chunks_cap;
    size_t count;
    size_t over;         /* of these: not to be handed out again */
    int mend;            /* a slot is damaged: write both */
    uint32_t slot_bytes; /* 0: a new log */
    uint8_t slot[OPC__LOG_SLOT_MAX];
} opc__log_scan;

OPC__FN uint32_t opc__log_slot_valid(const uint8_t *s) { /* its size, or 0 */
    uint32_t n = opc__buf_be32(s + 12);
    if (memcmp(s, "OPCLOG\r\n", 8) != 0 || n < OPC__LOG_SLOT || n > OPC__LOG_SLOT_MAX) return 0;
    return opc__buf_be32(s + n - 4) == opc__crc32c(0, s, n - 4) ? n : 0;
}

/* A new data key, under the secret that the log shall be under. */
OPC__FN opcomms_err opc__log_crypt_new(opc__log *l, const uint8_t hash[32], uint32_t key_epoch,
                                       opc__log_crypt *c, opcomms_error *err) {
    const opc__log_secret *s = l->secret;
    const opc__seal_ask *ask = s->fresh != NULL ? s->fresh : s->password;
    char password[OPC__SEAL_PASSWORD_MAX];
    size_t n = 0;
    opcomms_err rc = opc__log_salt_room(l);
    memset(c, 0, sizeof *c);
    c->tag = OPC__SEAL_TAG;
    opc__buf_put32(c->field, key_epoch);
    opc__buf_put32(c->field + 4, OPC__SEAL_TAG);
    opc__buf_put32(c->field + 8, OPC__SEAL_WRAPPED);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, "log");
    if (l->plat->random(l->plat->user, c->key, 32) != OPCOMMS_OK) {
        return opc__err_set(err, OPCOMMS_E_RANDOM, 0, "log");
    }
    if (s->want == OPC__LOG_BY_KEY) {
        if (s->key == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, "log: no private key");
        rc = opc__seal_wrap(l->plat, &l->cipher, s->key, 32, 0, hash, c->key, c->field + 12);
        return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, "log");
    }
    if (ask == NULL) return opc__err_set(err, OPCOMMS_E_PASSWORD, 0, "log: there is none");
    rc = opc__seal_new_password(ask, password, &n, err);
    if (rc == OPCOMMS_OK) {
        rc = opc__seal_wrap(l->plat, &l->cipher, (const uint8_t *)password, n,
                            s->iterations != 0 ? s->iterations : OPCOMMS_ITERATIONS, hash, c->key,
                            c->field + 12);
        if (rc != OPCOMMS_OK) (void)opc__err_set(err, rc, 0, "log");
    }
    opc__mem_wipe(password, sizeof password);
    return rc;
}

/* The data key in a slot. */
OPC__FN opcomms_err opc__log_unwrap(opc__log *l, const uint8_t *slot, const opc__seal_ask *ask,
                                    const char **why) {
    const uint8_t *w = slot + 140;
    char password[OPC__SEAL_PASSWORD_MAX];
    size_t n = 0;
    opcomms_err rc;
    *why = "log";
    if (w[0] == OPC__SEAL_BY_KEY) {
        if (l->secret->key == NULL) return OPCOMMS_E_ENCRYPTED;
        return opc__seal_unwrap(&l->cipher, l->secret->key, 32, slot + 48, w, l->crypt.key);
    }
    *why = "log: its password is needed";
    if (ask == NULL || ask->password == NULL) return OPCOMMS_E_ENCRYPTED;
    rc = opc__seal_password(ask, OPCOMMS_E_ENCRYPTED, password, &n, why);
    if (rc == OPCOMMS_OK) {
        *why = "log";
        rc = opc__seal_unwrap(&l->cipher, (const uint8_t *)password, n, slot + 48, w,
                              l->crypt.key);
    }
    opc__mem_wipe(password, sizeof password);
    return rc;
}

/* Is the log that this slot belongs to encrypted, and what shall it be? Asks for the passwords it
   needs, all of them, so that nothing is changed when one is wrong or missing. */
OPC__FN opcomms_err opc__log_unlock(opc__log *l, const uint8_t *slot, opcomms_error *err) {
    static const uint8_t none[12] = {0};
    const opc__log_secret *s = l->secret;
    const uint8_t *f = slot + 128;
    const char *why = NULL;
    int changed; /* the password is another one from now on */
    opcomms_err rc;
    if (memcmp(f, none, sizeof none) == 0) {
        if (s == NULL || s->want == OPC__LOG_CLEAR || s->want == OPC__LOG_DECRYPT) {
            return OPCOMMS_OK;
        }
        l->convert = 1;
        return opc__log_crypt_new(l, slot + 48, 1, &l->next, err);
    }
    if (opc__buf_be32(f + 4) != OPC__SEAL_TAG || opc__buf_be32(f + 8) != OPC__SEAL_WRAPPED ||
        !opc__seal_wrap_known(f + 12, OPC__SEAL_ITERATIONS_MAX)) {
        return opc__err_set(err, OPCOMMS_E_LOG_VERSION, 0, "another encryption");
    }
    l->crypt.tag = OPC__SEAL_TAG;
    memcpy(l->crypt.field, f, sizeof l->crypt.field);
    l->blind = s == NULL;
    if (s == NULL) return OPCOMMS_OK;
    if (s->want == OPC__LOG_CLEAR) return opc__err_set(err, OPCOMMS_E_ENCRYPTED, 0, "log");
    rc = opc__log_salt_room(l);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, "log");
    rc = opc__log_unwrap(l, slot, s->fresh != NULL ? s->fresh : s->password, &why);
    changed = rc == OPCOMMS_E_PASSWORD && f[12] == OPC__SEAL_BY_PASSWORD && s->fresh != NULL;
    if (changed) rc = opc__log_unwrap(l, slot, s->password, &why);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, why);
    if (s->want == OPC__LOG_DECRYPT) {
        l->convert = 1; /* and `next` is all zero */
        return OPCOMMS_OK;
    }
    l->convert = s->want != f[12] || changed;
    if (!l->convert) return OPCOMMS_OK;
    return opc__log_crypt_new(l, slot + 48, opc__buf_be32(f) + 1, &l->next, err);
}

/* A new log's first slot; everything else it needs is set by opc__log_slot_next. */
OPC__FN opcomms_err opc__log_slot_new(opc__log *l, opc__log_scan *c, const uint8_t key[32]) {
    uint8_t *s = c->slot;
    memset(s, 0, sizeof c->slot);
    memcpy(s, "OPCLOG\r\n", 8);
    opc__buf_put16(s + 8, 1);
    opc__buf_put16(s + 10, 1);
    opc__buf_put32(s + 12, OPC__LOG_SLOT);
    opc__buf_put64(s + 16, UINT64_MAX); /* the first one gets number 0 */
    opc__buf_put64(s + 40, (uint64_t)l->plat->wall_s(l->plat->user));
    memcpy(s + 48, key, 32);
    c->slot_bytes = OPC__LOG_SLOT;
    return l->plat->random(l->plat->user, s + 80, 32) == OPCOMMS_OK ? OPCOMMS_OK
                                                                    : OPCOMMS_E_RANDOM;
}

/* Writes the slot of the next sequence number and syncs it. */
OPC__FN opcomms_err opc__log_slot_next(opc__log *l, opc__log_scan *c, int *os) {
    uint8_t *s = c->slot;
    uint64_t sequence = opc__buf_be64(s + 16) + 1;
    opcomms_err rc = l->plat->random(l->plat->user, l->note + 8, sizeof l->note - 8);
    if (rc != OPCOMMS_OK) return OPCOMMS_E_RANDOM;
    l->open_counter = ++c->counter;
    l->epoch.counter = l->open_counter;
    l->epoch.random = opc__buf_be64(l->note + 8);
    opc__buf_put64(l->note, l->open_counter);
    if (opc__buf_be16(s + 10) < 1) opc__buf_put16(s + 10, 1);
    memcpy(s + 32, l->note + 8, 8);
    opc__buf_put64(s + 16, sequence);
    opc__buf_put64(s + 24, l->open_counter);
    opc__buf_put64(s + 112, l->uid + (l->weak ? OPC__LOG_UID_SKIP : 0));
    opc__buf_put64(s + 120, c->end);
    opc__buf_put32(s + c->slot_bytes - 4, opc__crc32c(0, s, c->slot_bytes - 4));
    memcpy(l->slot, s, sizeof l->slot);
    l->slot_bytes = c->slot_bytes;
    rc = opc__plat_write_all(l->plat, l->file, (sequence & 1u) * 2048u, s, c->slot_bytes, os);
    if (rc == OPCOMMS_OK) rc = l->plat->file_sync(l->plat->user, l->file, os);
    return rc;
}

/* Is a file without a valid slot one whose creation a crash cut short? It then holds zeros, or a
   whole header of zeros with the first bytes of a slot, which lack at least the last one. */
OPC__FN int opc__log_unborn(const uint8_t *h, uint64_t size) {
    static const uint8_t first[11] = {'O', 'P', 'C', 'L', 'O', 'G', '\r', '\n', 0, 1, 0};
    size_t used = OPC__LOG_HEADER;
    if (size > OPC__LOG_HEADER) return 0;
    while (used > 0 && h[used - 1] == 0) used--;
    if (used == 0) return 1;
    return size == OPC__LOG_HEADER && used < OPC__LOG_SLOT &&
           memcmp(h, first, used < sizeof first ? used : sizeof first) == 0;
}

/* Zeros first; recovery syncs them before opc__log_slot_next writes the slot, so that it lands in
   a header of full size. */
OPC__FN opcomms_err opc__log_create(opc__log *l, opc__log_scan *c, const uint8_t key[32],
                                    opcomms_error *err) {
    uint8_t h[OPC__LOG_HEADER];
    int want = l->secret->want, os = 0;
    opcomms_err rc = opc__log_slot_new(l, c, key);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, "new log");
    if (want == OPC__LOG_BY_KEY || want == OPC__LOG_BY_PASSWORD) {
        rc = opc__log_crypt_new(l, key, 1, &l->crypt, err);
        if (rc != OPCOMMS_OK) return rc;
        memcpy(c->slot + 128, l->crypt.field, sizeof l->crypt.field);
    }
    memset(h, 0, sizeof h);
    rc = opc__plat_write_all(l->plat, l->file, 0, h, sizeof h, &os);
    l->seed = opc__crc32c(0, c->slot + 80, 32);
    opc__str_hash_write(key, l->own);
    c->size = OPC__LOG_HEADER;
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, os, "new log");
}

/* Reads the header, or begins a new log. key NULL: a log of any key is only read, and one that is
   not begun yet leaves slot_bytes 0. */
OPC__FN opcomms_err opc__log_header(opc__log *l, opc__log_scan *c, const uint8_t key[32],
                                    opcomms_error *err) {
    uint8_t h[OPC__LOG_HEADER];
    size_t len = c->size < sizeof h ? (size_t)c->size : sizeof h, i;
    const uint8_t *slot = h, *other = h + 2048;
    opcomms_err rc;
    memset(h, 0, sizeof h);
    rc = opc__log_file_read(l->plat, l->file, 0, h, len);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, "log header");
    if (!opc__log_slot_valid(slot) || (opc__log_slot_valid(other) &&
                                       opc__buf_be64(other + 16) > opc__buf_be64(slot + 16))) {
        slot = other;
        other = h;
    }
    c->slot_bytes = opc__log_slot_valid(slot);
    if (c->slot_bytes == 0 && opc__log_unborn(h, c->size)) {
        if (key == NULL) return OPCOMMS_OK;
        return opc__log_create(l, c, key, err);
    }
    if (c->slot_bytes == 0 || c->size < OPC__LOG_HEADER) {
        return opc__err_set(err, OPCOMMS_E_LOG_DAMAGED, 0, "its header; nothing was changed");
    }
    if (opc__buf_be16(slot + 8) != 1) {
        return opc__err_set(err, OPCOMMS_E_LOG_VERSION, 0, "a newer version wrote it");
    }
    if (key != NULL && !opc__str_equal_ct(slot + 48, key, 32)) {
        return opc__err_set(err, OPCOMMS_E_LOG_KEY, 0, NULL);
    }
    if (opc__buf_be64(slot + 112) > OPC__LOG_UID_MAX) {
        return opc__err_set(err, OPCOMMS_E_LOG_DAMAGED, 0, "its header; nothing was changed");
    }
    rc = opc__log_unlock(l, slot, err);
    if (rc != OPCOMMS_OK) return rc;
    memcpy(c->slot, slot, c->slot_bytes);
    l->seed = opc__crc32c(0, slot + 80, 32);
    opc__str_hash_write(slot + 48, l->own);
    l->uid = opc__buf_be64(slot + 112);
    c->synced = opc__buf_be64(slot + 120);
    c->counter = opc__buf_be64(slot + 24);
    /* A damaged slot may have been the newer one, whose counter is used up. */
    for (i = 0; i < 2048 && other[i] == 0;) i++;
    if (i < 2048 && !opc__log_slot_valid(other)) {
        c->counter++;
        c->mend = 1;
    }
    return OPCOMMS_OK;
}

/* `len` bytes at `at`, all within the file; in *p until the next call. Reads far ahead. */
OPC__FN opcomms_err opc__log_window(opc__log *l, opc__log_scan *c, uint64_t at, size_t len,
                                    uint8_t **p) {
    OPCOMMS_ASSERT(len <= c->buf_cap);
    OPCOMMS_ASSERT(at <= c->size);
    OPCOMMS_ASSERT(len <= c->size - at);
    if (at < c->buf_at || at - c->buf_at > c->buf_len || len > c->buf_len - (at - c->buf_at)) {
        size_t n = c->size - at < c->buf_cap ? (size_t)(c->size - at) : c->buf_cap;
        opcomms_err rc;
        c->buf_len = 0;
        rc = opc__log_file_read(l->plat, l->file, at, c->buf, n);
        if (rc != OPCOMMS_OK) return rc;
        c->buf_at = at;
        c->buf_len = n;
    }
    *p = c->buf + (size_t)(at - c->buf_at);
    return OPCOMMS_OK;
}

/* Is there a valid batch at `at`? Its bytes are then in *p. OPCOMMS_E_NOT_FOUND: no. Any other
   error says that the file could not be read, which proves nothing about its content. The header's
   own CRC comes first, so that no forged length makes a search read the same bytes again. */
OPC__FN opcomms_err opc__log_batch_at(opc__log *l, opc__log_scan *c, uint64_t at, uint8_t **p,
                                      uint32_t *len) {
    opcomms_err rc;
    if (c->size < OPC__LOG_BATCH || at > c->size - OPC__LOG_BATCH) return OPCOMMS_E_NOT_FOUND;
    rc = opc__log_window(l, c, at, OPC__LOG_BATCH, p);
    if (rc != OPCOMMS_OK) return rc;
    *len = opc__buf_be32(*p + 4);
    if (opc__buf_be32(*p) != OPC__LOG_MAGIC || *len < OPC__LOG_BATCH || *len > OPC__LOG_BATCH_MAX ||
        *len > c->size - at || opc__buf_be64(*p + 16) != at || opc__buf_be64(*p + 32) > at ||
        opc__buf_be32(*p + 44) != opc__log_batch_crc(l, *p, 44)) {
        return OPCOMMS_E_NOT_FOUND;
    }
    rc = opc__log_window(l, c, at, *len, p);
    if (rc != OPCOMMS_OK) return rc;
    return opc__buf_be32(*p + 8) == opc__log_batch_crc(l, *p, *len) ? OPCOMMS_OK
                                                                    : OPCOMMS_E_NOT_FOUND;
}

/* The first place in n bytes that may begin a batch; n: none. */
OPC__FN size_t opc__log_magic(const uint8_t *p, size_t n) {
    size_t i = 0;
    while (i + 4 <= n) {
        const uint8_t *q = (const uint8_t *)memchr(p + i, OPC__LOG_MAGIC >> 24, n - i - 3);
        if (q == NULL) return n;
        if (opc__buf_be32(q) == OPC__LOG_MAGIC) return (size_t)(q - p);
        i = (size_t)(q - p) + 1;
    }
    return n;
}

/* Looks for valid batches behind a bad place: what they say was synced decides what it means. Also
   finds where the zeros begin. */
OPC__FN opcomms_err opc__log_search(opc__log *l, opc__log_scan *c, uint64_t from) {
    uint64_t at = from;
    while (at < c->size) {
        size_t most = c->buf_cap < 65536u ? c->buf_cap : 65536u;
        size_t n = c->size - at < most ? (size_t)(c->size - at) : most, i, used;
        uint64_t next = at + n == c->size ? c->size : at + n - 3;
        uint8_t *p = NULL;
        uint32_t len = 0;
        opcomms_err rc = opc__log_window(l, c, at, n, &p);
        if (rc != OPCOMMS_OK) return rc;
        i = opc__log_magic(p, n);
        used = i < n ? i + 4 : n;
        if (p[0] == 0 && memcmp(p, p + 1, used - 1) == 0) used = 0;
        while (used > 0 && p[used - 1] == 0) used--;
        if (used > 0) c->used = at + used;
        if (i < n) {
            rc = opc__log_batch_at(l, c, at + i, &p, &len);
            if (rc != OPCOMMS_OK && rc != OPCOMMS_E_NOT_FOUND) return rc;
            next = at + i + 1;
            if (rc == OPCOMMS_OK) {
                next = c->used = at + i + len;
                if (opc__buf_be64(p + 32) > c->synced) c->synced = opc__buf_be64(p + 32);
            }
        }
        at = next;
    }
    return OPCOMMS_OK;
}

/* The index of opening: entries of a number 8, where its message lies 6 (0: it is over), and where
   the last operation of type 6 or 7 on it lies 6 (0: none); in chunks, so that growing it takes no
   more than itself. */
#define OPC__LOG_ENTRY 20u
#define OPC__LOG_CHUNK 1024u

OPC__FN uint8_t *opc__log_entry(const opc__log_scan *c, size_t i) {
    OPCOMMS_ASSERT(i / OPC__LOG_CHUNK < c->chunks);
    return c->chunk[i / OPC__LOG_CHUNK] + i % OPC__LOG_CHUNK * OPC__LOG_ENTRY;
}

OPC__FN uint64_t opc__log_be48(const uint8_t *p) {
    return (uint64_t)opc__buf_be16(p) << 32 | opc__buf_be32(p + 2);
}
OPC__FN void opc__log_put48(uint8_t *p, uint64_t v) {
    OPCOMMS_ASSERT(v < OPC__LOG_SIZE_MAX);
    opc__buf_put16(p, (uint16_t)(v >> 32));
    opc__buf_put32(p + 2, (uint32_t)v);
}

OPC__FN void opc__log_index_free(opc__mem *mem, opc__log_scan *c, size_t kept) {
    while (c->chunks > kept) {
        opc__mem_free(mem, c->chunk[--c->chunks], OPC__LOG_CHUNK * OPC__LOG_ENTRY);
    }
    if (kept > 0) return;
    opc__mem_free(mem, c->chunk, c->chunks_cap * sizeof *c->chunk);
    c->chunk = NULL;
    c->chunks_cap = c->count = 0;
}

/* Room for one entry more. Those that are over go when they are an eighth of the others. */
OPC__FN opcomms_err opc__log_index_grow(opc__mem *mem, opc__log_scan *c) {
    if (c->over > OPC__LOG_CHUNK / 2 && c->over > (c->count - c->over) / 8) {
        size_t i, kept = 0;
        for (i = 0; i < c->count; i++) {
            uint8_t *e = opc__log_entry(c, i);
            if (opc__log_be48(e + 8) == 0) continue;
            if (kept != i) memcpy(opc__log_entry(c, kept), e, OPC__LOG_ENTRY);
            kept++;
        }
        c->count = kept;
        c->over = 0;
        opc__log_index_free(mem, c, kept / OPC__LOG_CHUNK + 1);
        if (kept / OPC__LOG_CHUNK < c->chunks) return OPCOMMS_OK;
    }
    if (c->chunks == c->chunks_cap) {
        size_t cap = c->chunks_cap == 0 ? 16 : c->chunks_cap * 2;
        uint8_t **p = (uint8_t **)opc__mem_array(mem, cap, sizeof *p);
        if (p == NULL) return OPCOMMS_E_NOMEM;
        if (c->chunks > 0) memcpy(p, c->chunk, c->chunks * sizeof *p);
        opc__mem_free(mem, c->chunk, c->chunks_cap * sizeof *p);
        c->chunk = p;
        c->chunks_cap = cap;
    }
    c->chunk[c->chunks] = (uint8_t *)opc__mem_raw(mem, OPC__LOG_CHUNK * OPC__LOG_ENTRY);
    if (c->chunk[c->chunks] == NULL) return OPCOMMS_E_NOMEM;
    c->chunks++;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__log_index_add(opc__mem *mem, opc__log_scan *c, uint64_t uid,
                                       uint64_t ref) {
    uint8_t *e;
    if (c->count == c->chunks * OPC__LOG_CHUNK) {
        opcomms_err rc = opc__log_index_grow(mem, c);
        if (rc != OPCOMMS_OK) return rc;
    }
    e = opc__log_entry(c, c->count++);
    opc__buf_put64(e, uid);
    opc__log_put48(e + 8, ref);
    opc__log_put48(e + 14, 0);
    return OPCOMMS_OK;
}

/* The entry of a message that is not over, or NULL. */
OPC__FN uint8_t *opc__log_index_find(const opc__log_scan *c, uint64_t uid) {
    size_t lo = 0, hi = c->count;
    uint8_t *e;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (opc__buf_be64(opc__log_entry(c, mid)) < uid) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    if (lo == c->count) return NULL;
    e = opc__log_entry(c, lo);
    return opc__buf_be64(e) == uid && opc__log_be48(e + 8) != 0 ? e : NULL;
}

OPC__FN opcomms_err opc__log_replay_message(opc__log *l, opc__log_scan *c, unsigned type,
                                            const uint8_t *body, uint32_t n, uint64_t ref) {
    size_t len = opc__log_head_len(type, body, n);
    uint64_t uid = len > 0 ? opc__buf_be64(body + 40) : 0;
    opcomms_err rc;
    if (uid <= c->uid_last || uid > OPC__LOG_UID_MAX) return OPCOMMS_E_LOG_DAMAGED;
    if (!opc__log_head_sound(l, type, body, len)) return OPCOMMS_E_LOG_DAMAGED;
    c->uid_last = uid;
    if (uid > l->uid) l->uid = uid;
    rc = opc__log_index_add(l->mem, c, uid, ref);
    if (rc == OPCOMMS_OK && type == OPC__OP_STREAM && l->owner.seen != NULL) {
        opc__msg_meta m;
        opc__log_meta_of(l, type, body, &m);
        rc = l->owner.seen(l->owner.user, &m);
    }
    return rc;
}

/* An operation on the message whose number its body begins with. */
OPC__FN opcomms_err opc__log_replay_on(opc__log_scan *c, unsigned type, const uint8_t *body,
                                       uint32_t n, uint64_t ref) {
    int state = type == OPC__OP_FAILED || type == OPC__OP_DEAD;
    uint8_t *e;
    if (n != (type == OPC__OP_ACK ? 8u : state ? 32u : 16u)) return OPCOMMS_E_LOG_DAMAGED;
    e = opc__log_index_find(c, opc__buf_be64(body));
    if (e == NULL) return OPCOMMS_OK;
    opc__log_put48(e + (state ? 14 : 8), state ? ref : 0);
    c->over += !state;
    return OPCOMMS_OK;
}

/* One operation; `ref` is where it lies. */
OPC__FN opcomms_err opc__log_replay_op(opc__log *l, opc__log_scan *c, unsigned type,
                                       const uint8_t *body, uint32_t n, uint64_t ref) {
    uint64_t uid;
    switch (type) {
    case OPC__OP_MESSAGE:
    case OPC__OP_QUEUED:
    case OPC__OP_STREAM: return opc__log_replay_message(l, c, type, body, n, ref);
    case OPC__OP_ACK:
    case OPC__OP_OVER:
    case OPC__OP_FAILED:
    case OPC__OP_DEAD:
    case OPC__OP_TAKEN: return opc__log_replay_on(c, type, body, n, ref);
    case OPC__OP_CHECKPOINT:
        uid = n >= 8 ? opc__buf_be64(body) : UINT64_MAX;
        if (uid > OPC__LOG_UID_MAX) return OPCOMMS_E_LOG_DAMAGED;
        if (uid > l->uid) l->uid = uid;
        return OPCOMMS_OK;
    case OPC__NOTE_OPENED:
        if (n < OPC__LOG_OPENED) return OPCOMMS_E_LOG_DAMAGED;
        break;
    default: break;
    }
    if (opc__log_is_note(type)) {
        return l->owner.note != NULL ? l->owner.note(l->owner.user, type, body, n) : OPCOMMS_OK;
    }
    return type < OPC__LOG_OP_MUST ? OPCOMMS_OK : OPCOMMS_E_LOG_VERSION;
}

/* The body of an operation of the valid batch p, decrypted; it begins at h in memory and `at` in
   the file. NULL: nobody needs to look at it, or nobody can. */
OPC__FN opcomms_err opc__log_body(opc__log *l, opc__log_scan *c, const uint8_t *p,
                                  const uint8_t *h, uint64_t at, const uint8_t **body,
                                  uint32_t *n) {
    opcomms_err rc = OPCOMMS_OK;
    if (l->crypt.tag == 0) return OPCOMMS_OK;
    if (*n < (h[0] == OPC__OP_SALT ? OPC__LOG_SALT : l->crypt.tag)) return OPCOMMS_E_LOG_DAMAGED;
    if (l->blind || h[0] == OPC__OP_SALT || h[0] == OPC__OP_FRAGMENT) {
        if (h[0] >= OPC__LOG_OP_MUST) return OPCOMMS_E_LOG_VERSION;
        if (h[0] == OPC__OP_SALT && !l->blind) {
            rc = opc__log_salt_add(l, at, opc__buf_be64(p + 24), *body);
        }
        *body = NULL;
        return rc;
    }
    rc = opc__log_unshut(l, at, h, c->plain, n);
    *body = c->plain;
    return rc;
}

/* The operations of a valid batch. */
OPC__FN opcomms_err opc__log_replay(opc__log *l, opc__log_scan *c, uint64_t at, const uint8_t *p,
                                    uint32_t len) {
    opc__rd r;
    uint32_t ops = opc__buf_be32(p + 12), i;
    if (opc__buf_be32(p + 40) & OPC__LOG_MUST) return OPCOMMS_E_LOG_VERSION;
    opc__rd_init(&r, p + OPC__LOG_BATCH, len - OPC__LOG_BATCH);
    for (i = 0; i < ops; i++) {
        const uint8_t *h = opc__rd_bytes(&r, 8), *body;
        uint32_t n = h != NULL ? opc__buf_be32(h + 4) : 0;
        opcomms_err rc;
        body = opc__rd_bytes(&r, n);
        if (h == NULL || body == NULL) return OPCOMMS_E_LOG_DAMAGED;
        rc = opc__log_body(l, c, p, h, at + (uint64_t)(h - p), &body, &n);
        if (rc == OPCOMMS_OK && body != NULL) {
            rc = opc__log_replay_op(l, c, h[0], body, n, at + (uint64_t)(h - p));
        }
        if (rc != OPCOMMS_OK) return rc;
    }
    return opc__rd_left(&r) == 0 ? OPCOMMS_OK : OPCOMMS_E_LOG_DAMAGED;
}

/* Everything kept above D is written and synced again: a page cache may hold what the disk does
   not. Then the tail goes. */
OPC__FN opcomms_err opc__log_settle(opc__log *l, opc__log_scan *c, int *os) {
    uint64_t at = c->synced > OPC__LOG_HEADER ? c->synced : OPC__LOG_HEADER;
    opcomms_err rc = OPCOMMS_OK;
    if (c->used > c->end) {
        rc = l->plat->file_truncate(l->plat->user, l->file, c->end, os);
        c->size = c->end;
        l->cut = c->used - c->end;
    }
    l->zeroed = c->size;
    while (rc == OPCOMMS_OK && at < c->end) {
        size_t n = c->end - at < c->buf_cap ? (size_t)(c->end - at) : c->buf_cap;
        uint8_t *p = NULL;
        rc = opc__log_window(l, c, at, n, &p);
        if (rc == OPCOMMS_OK) rc = opc__plat_write_all(l->plat, l->file, at, p, n, os);
        at += n;
    }
    if (rc == OPCOMMS_OK) rc = l->plat->file_sync(l->plat->user, l->file, os);
    return rc;
}

/* The unbroken row of batches, and whether what follows it is a torn tail or damage. Reads only. */
OPC__FN opcomms_err opc__log_row(opc__log *l, opc__log_scan *c, opcomms_error *err) {
    uint64_t at = OPC__LOG_HEADER, counter = 0;
    uint32_t len = 0;
    uint8_t *p = NULL;
    opcomms_err rc;
    while ((rc = opc__log_batch_at(l, c, at, &p, &len)) == OPCOMMS_OK) {
        if (opc__buf_be64(p + 24) < counter) break;
        counter = opc__buf_be64(p + 24);
        if (opc__buf_be64(p + 32) > c->synced) c->synced = opc__buf_be64(p + 32);
        rc = opc__log_replay(l, c, at, p, len);
        if (rc != OPCOMMS_OK) {
            (void)opc__err_set(err, rc, 0, "a valid batch; nothing was changed");
            if (err != NULL) err->position = at;
            return rc;
        }
        at += len;
    }
    c->end = at;
    c->used = at;
    if (counter > c->counter) c->counter = counter;
    if (rc == OPCOMMS_OK || rc == OPCOMMS_E_NOT_FOUND) {
        rc = at < c->size ? opc__log_search(l, c, at) : OPCOMMS_OK;
    }
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, "log: cannot be read");
    if (at < c->synced) {
        (void)opc__err_set(err, OPCOMMS_E_LOG_DAMAGED, 0, "nothing was changed");
        if (err != NULL) err->position = at;
        return OPCOMMS_E_LOG_DAMAGED;
    }
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__log_recover(opc__log *l, opc__log_scan *c, opcomms_error *err) {
    int os = 0;
    opcomms_err rc = opc__log_row(l, c, err);
    if (rc != OPCOMMS_OK) return rc;
    rc = opc__log_settle(l, c, &os);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, os, "log recovery");
}

/* What became of a message, by the operation at `at`. */
OPC__FN opcomms_err opc__log_state(opc__log *l, uint64_t at, opc__msg_meta *m) {
    uint8_t op[40];
    opcomms_err rc = opc__log_get_op(l, at, 0, op, sizeof op);
    if (rc != OPCOMMS_OK) return rc;
    if ((op[0] != OPC__OP_FAILED && op[0] != OPC__OP_DEAD) || opc__buf_be32(op + 4) != 32 ||
        opc__buf_be64(op + 8) != m->uid) {
        return OPCOMMS_E_LOG_DAMAGED;
    }
    m->attempts = opc__buf_be32(op + 16);
    m->code = (int32_t)opc__buf_be32(op + 20);
    m->tried = op[24];
    if (op[0] == OPC__OP_DEAD) {
        m->kind = OPC__KIND_DEAD;
        m->dead_s = (int64_t)opc__buf_be64(op + 32);
    }
    return OPCOMMS_OK;
}

/* Tells the owner of the message at `ref`; `tried`: where the last operation on it lies, or 0.
   Reads through the window: messages are told in the order of the file. */
OPC__FN opcomms_err opc__log_tell_one(opc__log *l, opc__log_scan *c, uint64_t ref,
                                      uint64_t tried) {
    size_t most = OPC__LOG_HEAD_MAX + 8u, len;
    uint8_t *p = NULL;
    uint32_t body;
    opc__msg_meta m;
    opcomms_err rc;
    if (most > c->size - ref) most = (size_t)(c->size - ref);
    if (most > c->buf_cap) most = c->buf_cap;
    rc = opc__log_window(l, c, ref, most, &p);
    if (rc != OPCOMMS_OK) return rc;
    body = opc__buf_be32(p + 4);
    if (opc__buf_be32(p + 8 + 72) > OPC__LOG_FRAGS) {
        return OPCOMMS_E_LIMIT; /* a larger OPCOMMS_MAX_FRAME stored it */
    }
    len = opc__log_head_len(p[0], p + 8, body);
    if (len == 0 || len > most - 8 || !opc__log_head_sound(l, p[0], p + 8, len)) {
        return OPCOMMS_E_LOG_DAMAGED;
    }
    opc__log_meta_of(l, p[0], p + 8, &m);
    ref = opc__log_ref(ref, opc__log_message_bytes(p + 8, body, 0));
    l->live += opc__log_size_of(ref);
    if (tried != 0 && m.kind == OPC__KIND_OUT) rc = opc__log_state(l, tried, &m);
    if (rc != OPCOMMS_OK || l->owner.found == NULL) return rc;
    return l->owner.found(l->owner.user, m.uid, ref, &m);
}

/* The same of an encrypted log, whose operations are opened one by one. */
OPC__FN opcomms_err opc__log_tell_sealed(opc__log *l, uint64_t ref, uint64_t tried) {
    opc__msg_meta m;
    opcomms_err rc = opc__log_head(l, ref);
    if (rc != OPCOMMS_OK) return rc;
    opc__log_meta_of(l, l->head_type, l->head, &m);
    if (tried != 0 && m.kind == OPC__KIND_OUT) rc = opc__log_state(l, tried, &m);
    if (rc != OPCOMMS_OK) return rc;
    ref = opc__log_ref(ref, opc__log_message_bytes(l->head, l->head_body, l->crypt.tag));
    l->live += opc__log_size_of(ref);
    return l->owner.found != NULL ? l->owner.found(l->owner.user, m.uid, ref, &m) : OPCOMMS_OK;
}

/* Tells the owner of every message that is not over. */
OPC__FN opcomms_err opc__log_tell(opc__log *l, opc__log_scan *c, opcomms_error *err) {
    size_t i;
    for (i = 0; i < c->count; i++) {
        const uint8_t *e = opc__log_entry(c, i);
        uint64_t ref = opc__log_be48(e + 8);
        opcomms_err rc;
        if (ref == 0) continue;
        if (l->crypt.tag == 0) {
            rc = opc__log_tell_one(l, c, ref, opc__log_be48(e + 14));
        } else {
            rc = opc__log_tell_sealed(l, ref, opc__log_be48(e + 14));
        }
        if (rc == OPCOMMS_OK) continue;
        (void)opc__err_set(err, rc, 0, "stored message");
        if (err != NULL) err->position = ref;
        return rc;
    }
    return OPCOMMS_OK;
}

/* The new slot, and the note of this opening, both synced. */
OPC__FN opcomms_err opc__log_begin_epoch(opc__log *l, opc__log_scan *c, int *os) {
    uint8_t *b = NULL;
    uint64_t at = 0;
    /* The directory each time: the crash may have come right after the creation. */
    opcomms_err rc = l->plat->dir_sync(l->plat->user, l->dir, os);
    if (rc == OPCOMMS_OK) rc = opc__log_slot_next(l, c, os);
    if (rc == OPCOMMS_OK && c->mend) rc = opc__log_slot_next(l, c, os);
    if (rc != OPCOMMS_OK) return rc;
    l->active.tag = l->sealed.tag = l->crypt.tag;
    opc__log_batch_new(l, c->end);
    l->written = l->durable = c->end;
    if (l->crypt.tag > 0) {
        rc = opc__log_op(l, OPC__OP_SALT, OPC__LOG_SALT, OPC__LOG_ANY, &b, &at);
        OPCOMMS_ASSERT(rc == OPCOMMS_OK);
        if (l->plat->random(l->plat->user, b, OPC__LOG_SALT) != OPCOMMS_OK) {
            return OPCOMMS_E_RANDOM;
        }
        rc = opc__log_salt_add(l, at, l->open_counter, b);
        if (rc != OPCOMMS_OK) return rc;
    }
    rc = opc__log_op(l, OPC__NOTE_OPENED, OPC__LOG_OPENED, OPC__LOG_ANY, &b, &at);
    OPCOMMS_ASSERT(rc == OPCOMMS_OK);
    memcpy(b, l->note, OPC__LOG_OPENED);
    rc = opc__log_write(&l->base);
    if (rc != OPCOMMS_OK) {
        *os = l->os_code;
        return rc;
    }
    l->opened = l->durable = l->written;
    return l->plat->file_sync(l->plat->user, l->file, os);
}

/* Recovers, opens a new epoch, reports what is not over. */
OPC__FN opcomms_err opc__log_load(opc__log *l, const opc__log_options *o, opcomms_error *err) {
    opc__log_scan c;
    int os = 0;
    opcomms_err rc;
    memset(&c, 0, sizeof c);
    rc = l->plat->file_size(l->plat->user, l->file, &c.size, &os);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, os, o->path);
    if (c.size >= OPC__LOG_SIZE_MAX) return opc__err_set(err, OPCOMMS_E_LIMIT, 0, o->path);
    l->uid = o->uid_floor;
    l->weak = o->durability != 0;
    c.counter = o->counter_floor;
    l->secret = &o->secret;
    rc = opc__log_header(l, &c, o->key_hash, err);
    l->secret = NULL;
    if (rc != OPCOMMS_OK) return rc;
    c.buf_cap = c.size < OPC__LOG_BATCH_MAX ? (size_t)c.size : OPC__LOG_BATCH_MAX;
    c.buf = (uint8_t *)opc__mem_raw(l->mem, c.buf_cap);
    if (l->crypt.tag > 0) c.plain = (uint8_t *)opc__mem_raw(l->mem, c.buf_cap);
    if (c.buf == NULL || (l->crypt.tag > 0 && c.plain == NULL)) {
        rc = opc__err_set(err, OPCOMMS_E_NOMEM, 0, "log");
    }
    if (rc == OPCOMMS_OK) rc = opc__log_recover(l, &c, err);
    if (rc == OPCOMMS_OK) {
        rc = opc__log_begin_epoch(l, &c, &os);
        if (rc != OPCOMMS_OK) (void)opc__err_set(err, rc, os, "log header");
    }
    if (rc == OPCOMMS_OK) rc = opc__log_tell(l, &c, err);
    if (rc == OPCOMMS_OK && l->owner.note != NULL) {
        rc = l->owner.note(l->owner.user, OPC__NOTE_OPENED, l->note, sizeof l->note);
        if (rc != OPCOMMS_OK) (void)opc__err_set(err, rc, 0, "log");
    }
    opc__log_index_free(l->mem, &c, 0);
    opc__mem_free(l->mem, c.buf, c.buf_cap);
    opc__mem_free_wiped(l->mem, c.plain, c.buf_cap);
    opc__mem_wipe(c.slot, sizeof c.slot); /* the salt */
    return rc;
}

/* Directory, lock, file; in this order, so that nobody else's log is touched. */
OPC__FN opcomms_err opc__log_files(opc__log *l, const char *path, opcomms_error *err) {
    char dir[OPC__PATH_MAX], lock[OPC__PATH_MAX];
    const uint32_t mode = OPCOMMS_FILE_WRITE | OPCOMMS_FILE_CREATE | OPCOMMS_FILE_PRIVATE;
    const char *name = NULL;
    opc__text t;
    int os = 0;
    opcomms_err rc = opc__plat_split(path, dir, sizeof dir, &name);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, "log path");
    opc__text_init(&t, lock, sizeof lock);
    opc__text_str(&t, name);
    opc__text_str(&t, ".lock");
    if (t.cut) return opc__err_set(err, OPCOMMS_E_INVAL, 0, "log path");
    rc = l->plat->dir_open(l->plat->user, dir, &l->dir, &os);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, os, dir);
    rc = l->plat->file_open(l->plat->user, l->dir, lock, mode, &l->lock, &os);
    if (rc == OPCOMMS_OK) rc = l->plat->file_lock(l->plat->user, l->lock, &os);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, os, "log lock");
    l->name_len = strlen(name);
    l->name = (char *)opc__mem_alloc(l->mem, l->name_len + OPC__LOG_SUFFIX);
    if (l->name == NULL) return opc__err_set(err, OPCOMMS_E_NOMEM, 0, "log");
    memcpy(l->name, name, l->name_len);
    /* A compaction that did not come to its end; usually there is none. */
    (void)l->plat->file_remove(l->plat->user, l->dir, opc__log_new_name(l), &os);
    rc = l->plat->file_open(l->plat->user, l->dir, name, mode, &l->file, &os);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, os, path);
}

OPC__FN opcomms_err opc__log_open(const opc__log_options *o, opc__store **out,
                                  opcomms_error *err) {
    static const opc__store_class c = {
        opc__log_room,   opc__log_begin,       opc__log_data,
        opc__log_peek,   opc__log_commit,      opc__log_abort,     opc__log_ack,
        opc__log_meta,   opc__log_read,        opc__log_end,       opc__log_written,
        opc__log_durable, opc__log_write,      opc__log_flush_begin, opc__log_ahead_begin,
        opc__log_flush_run, opc__log_flush_end, opc__log_close,    opc__log_bytes,
        opc__log_hold,   opc__log_done,        opc__log_tried,     opc__log_note,
        opc__log_epoch,  opc__log_compact,     opc__log_space,     opc__log_backup,
    };
    opc__log *l = (opc__log *)opc__mem_alloc(o->mem, sizeof *l);
    opcomms_err rc;
    if (l == NULL) return opc__err_set(err, OPCOMMS_E_NOMEM, 0, "log");
    l->base.c = &c;
    opc__seal_cipher_init(&l->cipher);
    l->plat = o->plat;
    l->mem = o->mem;
    l->dir = l->file = l->lock = OPCOMMS_NO_HANDLE;
    l->cap = o->buffer_bytes != 0 ? o->buffer_bytes : OPC__LOG_BUFFER;
    OPCOMMS_ASSERT(l->cap >= 65536u);
    OPCOMMS_ASSERT(l->cap <= OPC__LOG_BATCH_MAX);
    l->bytes_max = o->log_bytes_max;
    if (o->owner != NULL) l->owner = *o->owner;
    l->saved = OPCOMMS_E_NOT_FOUND; /* no backup was begun */
    l->dead_min = o->dead_bytes_min != 0 ? o->dead_bytes_min : OPC__LOG_DEAD_MIN;
    l->slice = l->cap > OPC__LOG_SLICE ? l->cap : OPC__LOG_SLICE;
    if (o->slice_bytes != 0) l->slice = o->slice_bytes;
    l->ahead = o->ahead_bytes;
    l->puts_max = o->puts_max;
    l->put = (opc__log_put **)opc__mem_array(o->mem, o->puts_max, sizeof *l->put);
    l->active.p = (uint8_t *)opc__mem_raw(o->mem, l->cap);
    l->sealed.p = (uint8_t *)opc__mem_raw(o->mem, l->cap);
    l->head = (uint8_t *)opc__mem_alloc(o->mem, OPC__LOG_HEAD_MAX);
    l->piece = (uint8_t *)opc__mem_alloc(o->mem, OPC__FRAG_BYTES);
    if (l->put == NULL || l->active.p == NULL || l->sealed.p == NULL || l->head == NULL ||
        l->piece == NULL) {
        rc = opc__err_set(err, OPCOMMS_E_NOMEM, 0, "log");
    } else {
        rc = opc__log_files(l, o->path, err);
    }
    if (rc == OPCOMMS_OK) rc = opc__log_load(l, o, err);
    if (rc != OPCOMMS_OK) {
        opc__log_free(l);
        return rc;
    }
    *out = &l->base;
    return OPCOMMS_OK;
}

/* Makes a log that was just opened what it shall be, by a compaction; before its owner uses it.
   On failure it is as it was. */
OPC__FN opcomms_err opc__log_convert(opc__store *s, opcomms_error *err) {
    opc__log *l = opc__log_of(s);
    opcomms_err rc = OPCOMMS_OK;
    while (l->convert && rc == OPCOMMS_OK) {
        int flush = 0;
        rc = opc__log_compact(s, 1, &flush);
        if (rc == OPCOMMS_OK && flush) rc = opc__log_flush_end(s, opc__log_flush_run(s));
        if (rc == OPCOMMS_OK && l->convert && l->copy == NULL) rc = OPCOMMS_E_IO; /* given up */
        if (rc == OPCOMMS_E_AGAIN) rc = OPCOMMS_E_UNSUPPORTED; /* by this owner */
    }
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, l->os_code, "log: its encryption");
}

/* >>look ==== L2 ==== a log read without its peer: verified, listed, salvaged into a new one */

/* A row of keys, and beside each a place in the file. */
typedef struct opc__look_list {
    uint64_t *key;
    uint64_t *ref;
    size_t count;
    size_t cap;
} opc__look_list;

/* The index: its keys are (message number - 1) * 4 + kind, its places where the message lies; 2^62
   is the highest number. Sorted, all that is known of a message stands together, and the best copy
   of several first. */
enum {
    OPC__LOOK_ACKED = 0,  /* an acknowledgement; in the end: an acknowledged message */
    OPC__LOOK_WHOLE = 1,  /* in a valid batch */
    OPC__LOOK_FOUND = 2,  /* in a bad part, but valid itself */
    OPC__LOOK_BROKEN = 3  /* its payload is damaged; in the end only */
};

typedef struct opc__look {
    opc__mem *mem;
    opc__log *log; /* only to read with */
    opc__log_scan c;
    opc__look_list m;     /* the index */
    opc__look_list tried; /* by number: operations of type 6 and 7 */
    opc__store *to; /* a salvage that writes: the new log, */
    size_t copied;  /* and how much of the index it has */
    int all;        /* the acknowledged stay in the index */
    int newer;      /* it holds what only a newer version understands */
    int larger;     /* and a message that only a larger OPCOMMS_MAX_FRAME has room for */
    uint64_t floor; /* the highest number that was given out */
    opcomms_log_report r;
} opc__look;

OPC__FN int opc__look_less(const opc__look_list *m, size_t a, size_t b) {
    return m->key[a] != m->key[b] ? m->key[a] < m->key[b] : m->ref[a] < m->ref[b];
}

OPC__FN void opc__look_swap(opc__look_list *m, size_t a, size_t b) {
    uint64_t key = m->key[a], ref = m->ref[a];
    m->key[a] = m->key[b];
    m->ref[a] = m->ref[b];
    m->key[b] = key;
    m->ref[b] = ref;
}

/* Entry i of a heap of n sinks to its place. */
OPC__FN void opc__look_sink(opc__look_list *m, size_t i, size_t n) {
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) return;
        if (child + 1 < n && opc__look_less(m, child, child + 1)) child++;
        if (!opc__look_less(m, i, child)) return;
        opc__look_swap(m, i, child);
        i = child;
    }
}

OPC__FN void opc__look_sort(opc__look_list *m) {
    size_t i;
    for (i = m->count / 2; i > 0; i--) opc__look_sink(m, i - 1, m->count);
    for (i = m->count; i > 1; i--) {
        opc__look_swap(m, 0, i - 1);
        opc__look_sink(m, 0, i - 1);
    }
}

OPC__FN opcomms_err opc__look_grow(opc__mem *mem, opc__look_list *m) {
    size_t cap = m->cap == 0 ? 1024 : 2 * m->cap;
    uint64_t *key = (uint64_t *)opc__mem_array(mem, cap, 8);
    uint64_t *ref = key == NULL ? NULL : (uint64_t *)opc__mem_array(mem, cap, 8);
    if (ref == NULL) {
        opc__mem_free(mem, key, cap * 8);
        return OPCOMMS_E_NOMEM;
    }
    if (m->count > 0) {
        memcpy(key, m->key, m->count * 8);
        memcpy(ref, m->ref, m->count * 8);
    }
    opc__mem_free(mem, m->key, m->cap * 8);
    opc__mem_free(mem, m->ref, m->cap * 8);
    m->key = key;
    m->ref = ref;
    m->cap = cap;
    return OPCOMMS_OK;
}

OPC__FN void opc__look_free(opc__mem *mem, opc__look_list *m) {
    opc__mem_free(mem, m->key, m->cap * 8);
    opc__mem_free(mem, m->ref, m->cap * 8);
    memset(m, 0, sizeof *m);
}

/* Of the attempts on a message only the last one counts. */
OPC__FN void opc__look_last_tries(opc__look_list *m) {
    size_t i, n = 0;
    opc__look_sort(m);
    for (i = 0; i < m->count; i++) {
        if (i + 1 < m->count && m->key[i + 1] == m->key[i]) continue;
        m->key[n] = m->key[i];
        m->ref[n++] = m->ref[i];
    }
    m->count = n;
}

OPC__FN opcomms_err opc__look_try(opc__look *k, uint64_t uid, uint64_t ref) {
    opc__look_list *m = &k->tried;
    if (m->count == m->cap) {
        if (m->cap > 0) opc__look_last_tries(m);
        if (m->count >= m->cap / 2) {
            opcomms_err rc = opc__look_grow(k->mem, m);
            if (rc != OPCOMMS_OK) return rc;
        }
    }
    m->key[m->count] = uid;
    m->ref[m->count++] = ref;
    return OPCOMMS_OK;
}

/* The description of a message, with what became of it. Its dest lies in the head. */
OPC__FN opcomms_err opc__look_meta(opc__look *k, uint64_t ref, opc__msg_meta *out) {
    const opc__look_list *t = &k->tried;
    size_t lo = 0, hi = t->count;
    opcomms_err rc = opc__log_head(k->log, ref);
    if (rc != OPCOMMS_OK) return rc;
    opc__log_meta_of(k->log, k->log->head_type, k->log->head, out);
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (t->key[mid] < out->uid) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    if (out->kind != OPC__KIND_OUT || lo == t->count || t->key[lo] != out->uid) return OPCOMMS_OK;
    return opc__log_state(k->log, t->ref[lo], out);
}

/* Reads the whole payload of a message. OPCOMMS_E_LOG_DAMAGED: it is not what was stored. */
OPC__FN opcomms_err opc__look_payload(opc__look *k, uint64_t ref, uint64_t *bytes) {
    uint8_t buf[4096];
    uint64_t at = 0;
    uint32_t frags, i;
    size_t got = 0;
    opcomms_err rc = opc__log_head(k->log, ref);
    if (rc != OPCOMMS_OK) return rc;
    *bytes = opc__buf_be64(k->log->head + 48);
    frags = opc__buf_be32(k->log->head + 72);
    for (i = 0; i < frags; i++) {
        if (opc__buf_be64(opc__log_frags(k->log) + 8u * i) >= k->c.size) {
            return OPCOMMS_E_LOG_DAMAGED;
        }
    }
    while (at < *bytes) {
        rc = opc__log_read(&k->log->base, ref, at, buf, sizeof buf, &got);
        if (rc != OPCOMMS_OK) return rc;
        if (got == 0) return OPCOMMS_E_LOG_DAMAGED;
        at += got;
    }
    return OPCOMMS_OK;
}

/* An unread message has the copies i to end: the first one that can be read counts. */
OPC__FN opcomms_err opc__look_choose(opc__look *k, size_t i, size_t end, uint64_t *key,
                                     uint64_t *ref) {
    uint64_t bytes = 0;
    *key = (k->m.key[i] & ~(uint64_t)3) | OPC__LOOK_BROKEN;
    *ref = k->m.ref[i];
    for (; i < end; i++) {
        opc__msg_meta m;
        opcomms_err rc = opc__look_payload(k, k->m.ref[i], &bytes);
        if (rc == OPCOMMS_OK) rc = opc__look_meta(k, k->m.ref[i], &m);
        if (rc == OPCOMMS_E_LOG_DAMAGED) continue;
        if (rc != OPCOMMS_OK) return rc;
        *key = k->m.key[i];
        *ref = k->m.ref[i];
        *(m.kind == OPC__KIND_IN    ? &k->r.unread
          : m.kind == OPC__KIND_OUT ? &k->r.queued
                                    : &k->r.dead_letters) += 1;
        *(m.kind == OPC__KIND_IN    ? &k->r.unread_bytes
          : m.kind == OPC__KIND_OUT ? &k->r.queued_bytes
                                    : &k->r.dead_letter_bytes) += bytes;
        k->r.salvaged += (k->m.key[i] & 3u) == OPC__LOOK_FOUND;
        return OPCOMMS_OK;
    }
    k->r.broken++;
    return OPCOMMS_OK;
}

/* Sorts the index. In the end (last) one entry is left for each message; before, only messages
   whose acknowledgement is known go, to make room. */
OPC__FN opcomms_err opc__look_settle(opc__look *k, int last) {
    size_t i, n = 0, end;
    opc__look_sort(&k->m);
    if (last) opc__look_last_tries(&k->tried);
    for (i = 0; i < k->m.count; i = end) {
        size_t acks = 0;
        for (end = i; end < k->m.count && k->m.key[end] >> 2 == k->m.key[i] >> 2; end++) {
            acks += (k->m.key[end] & 3u) == OPC__LOOK_ACKED;
        }
        if (acks > 0 && acks < end - i) {
            k->r.messages++;
            k->r.acknowledged++;
            if (k->all) {
                uint64_t ref = k->m.ref[i + acks];
                k->m.key[n] = k->m.key[i];
                k->m.ref[n++] = ref;
            }
        } else if (!last) {
            for (; i < end; i++) {
                k->m.key[n] = k->m.key[i];
                k->m.ref[n++] = k->m.ref[i];
            }
        } else if (acks == 0) {
            uint64_t key = 0, ref = 0;
            opcomms_err rc = opc__look_choose(k, i, end, &key, &ref);
            if (rc != OPCOMMS_OK) return rc;
            k->r.messages++;
            k->m.key[n] = key;
            k->m.ref[n++] = ref;
        }
    }
    k->m.count = n;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__look_add(opc__look *k, uint64_t uid, unsigned kind, uint64_t ref) {
    opcomms_err rc = OPCOMMS_OK;
    if (uid == 0 || uid > OPC__LOG_UID_MAX) return OPCOMMS_OK; /* never given out */
    if (k->m.count == k->m.cap) {
        if (k->m.cap > 0 && !k->all) rc = opc__look_settle(k, 0);
        if (rc == OPCOMMS_OK && k->m.count >= k->m.cap / 2) rc = opc__look_grow(k->mem, &k->m);
        if (rc != OPCOMMS_OK) return rc;
    }
    k->m.key[k->m.count] = (uid - 1) << 2 | kind;
    k->m.ref[k->m.count++] = ref;
    if (uid > k->floor) k->floor = uid;
    return OPCOMMS_OK;
}

/* What became of a message, into the new log. */
OPC__FN opcomms_err opc__look_copy_state(opc__store *to, const opc__msg_meta *m) {
    uint64_t unused = 0;
    opc__try t;
    memset(&t, 0, sizeof t);
    t.uid = m->uid;
    t.attempts = m->attempts;
    t.code = m->code;
    t.tried = m->tried;
    t.dead = m->kind == OPC__KIND_DEAD;
    t.time_s = m->dead_s;
    return to->c->tried(to, &t, &unused);
}

/* One message into the new log, under its old number. Of one that is over only that its number was
   seen from its stream. */
OPC__FN opcomms_err opc__look_copy(opc__look *k, opc__store *to, uint64_t ref, int over) {
    opc__log *l = k->log;
    opc__msg_meta meta;
    uint8_t buf[4096];
    uint64_t at = 0, uid = 0, unused = 0;
    uint32_t put = 0;
    size_t got = 0;
    int state;
    opcomms_err rc = opc__look_meta(k, ref, &meta); /* its dest lies in the head: stays meanwhile */
    if (over && (rc == OPCOMMS_E_LOG_DAMAGED || rc == OPCOMMS_E_LIMIT)) return OPCOMMS_OK;
    if (rc == OPCOMMS_OK && over && meta.stream == OPC__STREAM_NONE) return OPCOMMS_OK;
    if (rc == OPCOMMS_OK) rc = to->c->begin(to, &put);
    if (rc != OPCOMMS_OK) return rc;
    state = meta.kind == OPC__KIND_DEAD || meta.attempts != 0 || meta.code != 0 || meta.tried != 0;
    if (over) meta.bytes = 0;
    while (rc == OPCOMMS_OK && at < meta.bytes) {
        rc = opc__log_read(&l->base, ref, at, buf, sizeof buf, &got);
        if (rc == OPCOMMS_OK && got == 0) rc = OPCOMMS_E_LOG_DAMAGED;
        if (rc == OPCOMMS_OK) rc = to->c->data(to, put, buf, got);
        at += got;
    }
    if (rc == OPCOMMS_OK) {
        opc__msg_meta fresh = meta;
        if (meta.kind == OPC__KIND_DEAD) fresh.kind = OPC__KIND_OUT;
        opc__log_of(to)->uid = meta.uid - 1;
        rc = to->c->commit(to, put, &fresh, &uid, &ref, &unused);
        OPCOMMS_ASSERT(rc != OPCOMMS_OK || uid == meta.uid);
    }
    if (rc != OPCOMMS_OK) {
        to->c->abort(to, put);
        return rc;
    }
    if (over) return to->c->ack(to, ref, uid, &unused);
    return state ? opc__look_copy_state(to, &meta) : OPCOMMS_OK;
}

/* All messages that lie before `place`, in their order. */
OPC__FN opcomms_err opc__look_copy_until(opc__look *k, uint64_t place) {
    while (k->copied < k->m.count && k->m.ref[k->copied] < place) {
        size_t i = k->copied++;
        unsigned kind = k->m.key[i] & 3u;
        opcomms_err rc = OPCOMMS_OK;
        if (kind != OPC__LOOK_BROKEN) {
            rc = opc__look_copy(k, k->to, k->m.ref[i], kind == OPC__LOOK_ACKED);
        }
        if (rc != OPCOMMS_OK) return rc;
    }
    return OPCOMMS_OK;
}

/* One operation of a valid batch. */
OPC__FN opcomms_err opc__look_op(opc__look *k, unsigned type, const uint8_t *body, uint32_t n,
                                 uint64_t ref) {
    size_t len;
    if (k->to != NULL) { /* all else is known */
        uint8_t *b = NULL;
        opcomms_err rc;
        if (!opc__log_is_note(type)) return OPCOMMS_OK;
        rc = opc__look_copy_until(k, ref);
        if (rc != OPCOMMS_OK) return rc;
        rc = opc__log_op(opc__log_of(k->to), type, n, OPC__LOG_ANY, &b, &ref);
        if (rc == OPCOMMS_OK && n > 0) memcpy(b, body, n);
        return rc;
    }
    switch (type) {
    case OPC__OP_MESSAGE:
    case OPC__OP_QUEUED:
    case OPC__OP_STREAM:
        len = opc__log_head_len(type, body, n);
        if (len == 0 || !opc__log_head_sound(k->log, type, body, len)) {
            return OPCOMMS_E_LOG_DAMAGED;
        }
        return opc__look_add(k, opc__buf_be64(body + 40), OPC__LOOK_WHOLE, ref);
    case OPC__OP_FRAGMENT: return OPCOMMS_OK;
    case OPC__OP_ACK:
    case OPC__OP_OVER:
    case OPC__OP_TAKEN:
        if (n != (type == OPC__OP_ACK ? 8u : 16u)) return OPCOMMS_E_LOG_DAMAGED;
        return opc__look_add(k, opc__buf_be64(body), OPC__LOOK_ACKED, 0);
    case OPC__OP_FAILED:
    case OPC__OP_DEAD:
        return n == 32 ? opc__look_try(k, opc__buf_be64(body), ref) : OPCOMMS_E_LOG_DAMAGED;
    case OPC__OP_CHECKPOINT:
        if (n < 8 || opc__buf_be64(body) > OPC__LOG_UID_MAX) return OPCOMMS_E_LOG_DAMAGED;
        if (opc__buf_be64(body) > k->floor) k->floor = opc__buf_be64(body);
        k->newer |= n > 8;
        return OPCOMMS_OK;
    default: break;
    }
    if (type == OPC__NOTE_OPENED && n < OPC__LOG_OPENED) return OPCOMMS_E_LOG_DAMAGED;
    if (opc__log_is_note(type)) {
        k->r.notes++;
        return OPCOMMS_OK;
    }
    if (type >= OPC__LOG_OP_MUST) return OPCOMMS_E_LOG_VERSION;
    k->newer = 1;
    return OPCOMMS_OK;
}

/* The operations of a valid batch. OPCOMMS_E_LOG_DAMAGED: they make no sense. */
OPC__FN opcomms_err opc__look_batch(opc__look *k, uint64_t at, const uint8_t *p, uint32_t len) {
    opc__rd r;
    uint32_t ops = opc__buf_be32(p + 12), i;
    opcomms_err rc = OPCOMMS_OK;
    if (opc__buf_be32(p + 40) & OPC__LOG_MUST) return OPCOMMS_E_LOG_VERSION;
    opc__rd_init(&r, p + OPC__LOG_BATCH, len - OPC__LOG_BATCH);
    for (i = 0; i < ops && rc == OPCOMMS_OK; i++) {
        const uint8_t *h = opc__rd_bytes(&r, 8), *body;
        uint32_t n = h != NULL ? opc__buf_be32(h + 4) : 0;
        body = opc__rd_bytes(&r, n);
        if (h == NULL || body == NULL) return OPCOMMS_E_LOG_DAMAGED;
        rc = opc__log_body(k->log, &k->c, p, h, at + (uint64_t)(h - p), &body, &n);
        if (rc == OPCOMMS_OK && body != NULL) {
            rc = opc__look_op(k, h[0], body, n, at + (uint64_t)(h - p));
        }
    }
    if (rc != OPCOMMS_OK) return rc;
    return opc__rd_left(&r) == 0 ? OPCOMMS_OK : OPCOMMS_E_LOG_DAMAGED;
}

/* Messages within a bad part: each has checksums of its own, seeded like the batch's, so that
   nothing a payload contains is taken for one. Acknowledgements have none: not looked for. */
OPC__FN opcomms_err opc__look_pick(opc__look *k, uint64_t at, uint64_t to) {
    while (to - at >= 8u + OPC__LOG_FIXED) {
        size_t most = k->c.buf_cap < 65536u ? k->c.buf_cap : 65536u;
        size_t n = to - at < most ? (size_t)(to - at) : most, i = 0;
        uint8_t *p = NULL;
        opcomms_err rc = opc__log_window(k->log, &k->c, at, n, &p);
        if (rc != OPCOMMS_OK) return rc;
        for (; i + 8 <= n; i++) {
            const uint8_t *q = p + i;
            size_t fixed = opc__log_fixed(q[0]);
            if (fixed == 0 || q[1] != 0 || q[2] != 0 || q[3] != 0) continue;
            if (opc__buf_be32(q + 4) < fixed || opc__buf_be32(q + 4) > to - at - i - 8u) continue;
            rc = opc__log_head(k->log, at + i);
            if (rc == OPCOMMS_OK) {
                rc = opc__look_add(k, opc__buf_be64(k->log->head + 40), OPC__LOOK_FOUND, at + i);
                if (rc != OPCOMMS_OK) return rc;
            } else if (rc != OPCOMMS_E_LOG_DAMAGED && rc != OPCOMMS_E_LIMIT) {
                return rc; /* could not be read: proves nothing */
            }
        }
        if (at + n == to) break;
        at += n - 7;
    }
    return OPCOMMS_OK;
}

/* The first valid batch from `at` on, or the end of what is not zero. */
OPC__FN opcomms_err opc__look_next(opc__look *k, uint64_t at, uint64_t limit, uint64_t *next) {
    uint64_t used = at;
    while (at < limit) {
        size_t most = k->c.buf_cap < 65536u ? k->c.buf_cap : 65536u;
        size_t n = limit - at < most ? (size_t)(limit - at) : most, i, last = n;
        uint8_t *p = NULL;
        uint32_t len = 0;
        opcomms_err rc = opc__log_window(k->log, &k->c, at, n, &p);
        if (rc != OPCOMMS_OK) return rc;
        i = opc__log_magic(p, n);
        while (last > 0 && p[last - 1] == 0) last--;
        if (last > 0 && at + last > used) used = at + last;
        if (i < n) {
            rc = opc__log_batch_at(k->log, &k->c, at + i, &p, &len);
            if (rc == OPCOMMS_OK) {
                *next = at + i;
                return OPCOMMS_OK;
            }
            if (rc != OPCOMMS_E_NOT_FOUND) return rc;
            at += i + 1;
        } else {
            at = at + n == limit ? limit : at + n - 3;
        }
    }
    *next = used;
    return OPCOMMS_E_NOT_FOUND;
}

/* All valid batches up to `limit`, and what can be had from the bad parts between them. */
OPC__FN opcomms_err opc__look_survey(opc__look *k, uint64_t limit) {
    uint64_t at = OPC__LOG_HEADER, counter = 0, next = 0;
    uint32_t len = 0;
    uint8_t *p = NULL;
    while (at < limit) {
        opcomms_err rc = opc__log_batch_at(k->log, &k->c, at, &p, &len);
        int older = rc == OPCOMMS_OK && opc__buf_be64(p + 24) < counter;
        next = at + len;
        if (rc == OPCOMMS_OK && !older) {
            uint32_t flags = opc__buf_be32(p + 40);
            counter = opc__buf_be64(p + 24);
            if (counter > k->c.counter) k->c.counter = counter;
            rc = opc__look_batch(k, at, p, len);
            if (rc == OPCOMMS_E_LOG_VERSION) k->newer = 1;
            if (rc == OPCOMMS_OK || rc == OPCOMMS_E_LOG_VERSION) {
                k->r.batches++;
                k->r.flags &= ~OPCOMMS_REPORT_CLOSED;
                if (flags & OPC__LOG_CLOSED) k->r.flags |= OPCOMMS_REPORT_CLOSED;
                at = next;
                continue;
            }
            if (rc != OPCOMMS_E_LOG_DAMAGED) return rc;
        } else if (rc == OPCOMMS_E_NOT_FOUND) {
            rc = opc__look_next(k, at, limit, &next);
            if (rc == OPCOMMS_E_NOT_FOUND) limit = next; /* only zeros behind */
            if (rc != OPCOMMS_OK && rc != OPCOMMS_E_NOT_FOUND) return rc;
        } else if (rc != OPCOMMS_OK) {
            return rc;
        }
        if (next == at) break;
        k->r.flags &= ~OPCOMMS_REPORT_CLOSED;
        k->r.bad_parts++;
        k->r.bad_bytes += next - at;
        /* A batch older than the one before it was cut off once: nobody was shown what is in it. */
        rc = older || k->to != NULL || k->log->blind ? OPCOMMS_OK : opc__look_pick(k, at, next);
        if (rc != OPCOMMS_OK) return rc;
        at = next;
    }
    return OPCOMMS_OK;
}

OPC__FN void opc__look_close(opc__look *k) {
    opc__look_free(k->mem, &k->m);
    opc__look_free(k->mem, &k->tried);
    opc__log_index_free(k->mem, &k->c, 0);
    opc__mem_free(k->mem, k->c.buf, k->c.buf_cap);
    opc__mem_free_wiped(k->mem, k->c.plain, k->c.buf_cap);
    if (k->log != NULL) opc__log_free(k->log);
    opc__mem_wipe(&k->c, sizeof k->c); /* the salt */
}

/* Opens the file at `path` to read it; its lock is taken only when `lock` says so, else asked for.
   opc__look_close in any case. */
OPC__FN opcomms_err opc__look_open(opc__look *k, const opcomms_platform *plat, opc__mem *mem,
                                   const char *path, int lock, opcomms_error *err) {
    char dir[OPC__PATH_MAX], beside[OPC__PATH_MAX];
    const uint32_t mode = OPCOMMS_FILE_WRITE | OPCOMMS_FILE_CREATE | OPCOMMS_FILE_PRIVATE;
    const char *name = NULL;
    opc__text t;
    opc__log *l;
    int os = 0;
    opcomms_err rc = opc__plat_split(path, dir, sizeof dir, &name);
    memset(k, 0, sizeof *k);
    k->mem = mem;
    k->all = lock; /* a salvage: what is over has something to say too */
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, "log path");
    opc__text_init(&t, beside, sizeof beside);
    opc__text_str(&t, name);
    opc__text_str(&t, ".lock");
    if (t.cut) return opc__err_set(err, OPCOMMS_E_INVAL, 0, "log path");
    l = k->log = (opc__log *)opc__mem_alloc(mem, sizeof *l);
    if (l == NULL) return opc__err_set(err, OPCOMMS_E_NOMEM, 0, "log");
    l->plat = plat;
    l->mem = mem;
    l->dir = l->file = l->lock = OPCOMMS_NO_HANDLE;
    l->head = (uint8_t *)opc__mem_alloc(mem, OPC__LOG_HEAD_MAX);
    l->piece = (uint8_t *)opc__mem_alloc(mem, OPC__FRAG_BYTES);
    if (l->head == NULL || l->piece == NULL) return opc__err_set(err, OPCOMMS_E_NOMEM, 0, "log");
    rc = plat->dir_open(plat->user, dir, &l->dir, &os);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, os, dir);
    rc = plat->file_open(plat->user, l->dir, name, 0, &l->file, &os);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, os, path);
    rc = plat->file_open(plat->user, l->dir, beside, lock ? mode : 0, &l->lock, &os);
    if (!lock) {
        const int asks = plat->size >= sizeof *plat && plat->file_locked != NULL;
        if (rc == OPCOMMS_OK && asks && plat->file_locked(plat->user, l->lock)) {
            k->r.flags |= OPCOMMS_REPORT_IN_USE;
        }
        return OPCOMMS_OK;
    }
    if (rc == OPCOMMS_OK) rc = plat->file_lock(plat->user, l->lock, &os);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, os, "log lock");
}

/* What the header says. */
OPC__FN void opc__look_head(opc__look *k) {
    const uint8_t *s = k->c.slot;
    k->r.bytes = k->c.size;
    if (k->c.slot_bytes == 0) {
        k->r.flags |= OPCOMMS_REPORT_NEW;
        return;
    }
    opc__str_hash_write(s + 48, k->r.hash);
    k->r.major = (uint16_t)opc__buf_be16(s + 8);
    k->r.minor = (uint16_t)opc__buf_be16(s + 10);
    k->r.opened = opc__buf_be64(s + 24);
    k->r.created_s = (int64_t)opc__buf_be64(s + 40);
    k->floor = opc__buf_be64(s + 112);
    k->newer = k->r.minor > 1;
    if (k->c.mend) k->r.flags |= OPCOMMS_REPORT_HEADER;
    if (k->log->crypt.tag > 0) k->r.flags |= OPCOMMS_REPORT_ENCRYPTED;
}

/* Fills in the report and the index. Fails as opening the log would; when it is damaged, everything
   that can be had from it is in the index nevertheless. whole: look for that in any case. */
OPC__FN opcomms_err opc__look_run(opc__look *k, int whole, opcomms_error *err) {
    opc__log *l = k->log;
    opcomms_error detail;
    int os = 0;
    opcomms_err rc = l->plat->file_size(l->plat->user, l->file, &k->c.size, &os), rc2;
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, os, "log");
    k->r.bytes = k->c.size;
    rc = opc__log_header(l, &k->c, NULL, err);
    if (rc != OPCOMMS_OK) return rc;
    opc__look_head(k);
    if (k->c.slot_bytes == 0) return OPCOMMS_OK;
    k->c.buf_cap = k->c.size < OPC__LOG_BATCH_MAX ? (size_t)k->c.size : OPC__LOG_BATCH_MAX;
    k->c.buf = (uint8_t *)opc__mem_alloc(k->mem, k->c.buf_cap);
    if (l->crypt.tag > 0 && !l->blind) {
        k->c.plain = (uint8_t *)opc__mem_raw(k->mem, k->c.buf_cap);
    }
    if (k->c.buf == NULL || (k->c.plain == NULL && l->crypt.tag > 0 && !l->blind)) {
        return opc__err_set(err, OPCOMMS_E_NOMEM, 0, "log");
    }
    memset(&detail, 0, sizeof detail);
    rc = opc__log_row(l, &k->c, &detail);
    k->r.synced = k->c.synced;
    if (rc == OPCOMMS_OK) {
        k->r.tail_bytes = k->c.used - k->c.end;
    } else {
        if (err != NULL) *err = detail;
        if (rc != OPCOMMS_E_LOG_DAMAGED) return rc;
        k->r.bad_at = detail.position;
        whole = 1;
    }
    rc2 = opc__look_survey(k, whole ? k->c.size : k->c.end);
    if (rc2 == OPCOMMS_OK) rc2 = opc__look_settle(k, 1);
    if (rc2 == OPCOMMS_E_LIMIT && rc == OPCOMMS_E_LOG_DAMAGED) {
        k->larger = 1;
        k->m.count = 0;
        return rc;
    }
    if (rc2 != OPCOMMS_OK) return opc__err_set(err, rc2, 0, "log: cannot be read");
    k->r.number_last = k->floor;
    if (rc == OPCOMMS_OK && k->r.broken > 0) {
        rc = opc__err_set(err, OPCOMMS_E_LOG_DAMAGED, 0, "the payload of an unread message");
    }
    return rc;
}

/* Opens and runs. A peer may be appending meanwhile: a batch that was half written when its place
   was read looks like damage, but not twice at the same place. */
OPC__FN opcomms_err opc__look_read(opc__look *k, const opcomms_platform *plat, opc__mem *mem,
                                   const char *path, int all, opcomms_error *err) {
    uint64_t bad_at = 0;
    int tries;
    for (tries = 0;; tries++) {
        opcomms_err rc = opc__look_open(k, plat, mem, path, 0, err);
        if (rc != OPCOMMS_OK) return rc;
        k->all |= all;
        rc = opc__look_run(k, 0, err);
        if (rc != OPCOMMS_E_LOG_DAMAGED || !(k->r.flags & OPCOMMS_REPORT_IN_USE)) return rc;
        if (tries == 5 || (k->r.bad_at != 0 && k->r.bad_at == bad_at)) return rc;
        bad_at = k->r.bad_at;
        opc__look_close(k);
    }
}

/* Messages and notes in the order of the file: the owner may rely on it. */
OPC__FN opcomms_err opc__look_copy_all(opc__look *k, opc__store *to) {
    opcomms_log_report r = k->r;
    uint64_t counter = k->c.counter;
    opcomms_err rc;
    k->to = to;
    k->copied = 0;
    rc = opc__look_survey(k, k->c.size);
    if (rc == OPCOMMS_OK) rc = opc__look_copy_until(k, UINT64_MAX);
    k->to = NULL;
    k->r = r;
    k->c.counter = counter;
    return rc;
}

OPC__FN opcomms_err opc__look_found(void *user, uint64_t uid, uint64_t ref,
                                   const opc__msg_meta *meta) {
    (void)user;
    (void)uid;
    (void)ref;
    (void)meta;
    return OPCOMMS_E_IN_USE; /* a new log holds nothing */
}

/* Everything that is not over into a new log at `path`, synced. */
OPC__FN opcomms_err opc__look_write(opc__look *k, const char *path, opcomms_error *err) {
    opc__log_options o;
    opc__store_owner owner;
    opc__store *to = NULL;
    opcomms_err rc, rc2;
    memset(&o, 0, sizeof o);
    memset(&owner, 0, sizeof owner);
    owner.found = opc__look_found;
    o.owner = &owner;
    o.plat = k->log->plat;
    o.mem = k->mem;
    o.path = path;
    memcpy(o.key_hash, k->c.slot + 48, 32);
    o.puts_max = 1;
    o.log_bytes_max = UINT64_MAX >> 1;
    o.counter_floor = k->c.counter;
    /* What is lost may have had higher numbers, which must not be given out again. That nothing is
       lost nobody can know: a file that was cut short looks like one that ends there. */
    o.uid_floor = k->floor + OPC__LOG_UID_SKIP;
    if (o.uid_floor > OPC__LOG_UID_MAX) o.uid_floor = OPC__LOG_UID_MAX;
    rc = opc__log_open(&o, &to, err);
    if (rc != OPCOMMS_OK) return rc;
    rc = opc__look_copy_all(k, to);
    rc2 = to->c->close(to);
    if (rc == OPCOMMS_OK) rc = rc2;
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, "while it was copied");
}

/* The names a salvage works with; all lie in one directory. */
typedef struct opc__look_names {
    char dir[OPC__PATH_MAX];
    const char *out; /* the new log */
    char path[OPC__PATH_MAX]; /* the whole path of the unfinished one */
    const char *part;
    char lock[OPC__PATH_MAX];
} opc__look_names;

OPC__FN opcomms_err opc__look_name(opc__look_names *n, const char *out) {
    opc__text t;
    opcomms_err rc = opc__plat_split(out, n->dir, sizeof n->dir, &n->out);
    if (rc != OPCOMMS_OK) return rc;
    opc__text_init(&t, n->path, sizeof n->path);
    opc__text_str(&t, out);
    opc__text_str(&t, ".part");
    n->part = n->path + (n->out - out);
    if (t.cut) return OPCOMMS_E_INVAL;
    opc__text_init(&t, n->lock, sizeof n->lock);
    opc__text_str(&t, n->part);
    opc__text_str(&t, ".lock");
    return t.cut ? OPCOMMS_E_INVAL : OPCOMMS_OK;
}

/* Does the new log open, and with as much unread as was found? */
OPC__FN opcomms_err opc__look_same(const opc__look *k, const char *path, opcomms_error *err) {
    opc__look other;
    opcomms_err rc = opc__look_open(&other, k->log->plat, k->mem, path, 0, err);
    if (rc == OPCOMMS_OK) rc = opc__look_run(&other, 0, err);
    if (rc == OPCOMMS_OK &&
        (other.r.unread != k->r.unread || other.r.unread_bytes != k->r.unread_bytes ||
         other.r.queued != k->r.queued || other.r.queued_bytes != k->r.queued_bytes ||
         other.r.dead_letters != k->r.dead_letters || other.r.notes < k->r.notes)) {
        rc = opc__err_set(err, OPCOMMS_E_IO, 0, "the new log differs from what was written");
    }
    opc__look_close(&other);
    return rc;
}

/* Salvages into a new log at `out`, under another name until it is complete, synced and read
   again. k was opened with its lock. */
OPC__FN opcomms_err opc__look_salvage(opc__look *k, const char *out, opcomms_error *err) {
    const opcomms_platform *plat = k->log->plat;
    opc__look_names n;
    intptr_t dir = OPCOMMS_NO_HANDLE;
    int os = 0;
    opcomms_err rc;
    if (k->c.slot_bytes == 0) return opc__err_set(err, OPCOMMS_E_EMPTY, 0, "not begun yet");
    if (k->newer) {
        return opc__err_set(err, OPCOMMS_E_LOG_VERSION, 0, "a newer version has to repair it");
    }
    if (k->larger) return opc__err_set(err, OPCOMMS_E_LIMIT, 0, "a larger OPCOMMS_MAX_FRAME");
    rc = opc__look_name(&n, out);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, "not a usable path");
    rc = plat->dir_open(plat->user, n.dir, &dir, &os);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, os, n.dir);
    rc = opc__plat_unused(plat, dir, n.out);
    if (rc != OPCOMMS_OK) {
        plat->dir_close(plat->user, dir);
        return opc__err_set(err, rc, 0, out);
    }
    (void)plat->file_remove(plat->user, dir, n.part, &os); /* of a crash; usually absent */
    rc = opc__look_write(k, n.path, err);
    if (rc == OPCOMMS_OK) rc = opc__look_same(k, n.path, err);
    if (rc == OPCOMMS_OK) {
        os = 0;
        rc = opc__plat_unused(plat, dir, n.out);
        if (rc == OPCOMMS_OK) rc = plat->file_rename(plat->user, dir, n.part, n.out, &os);
        if (rc == OPCOMMS_OK) {
            rc = plat->dir_sync(plat->user, dir, &os);
            if (rc != OPCOMMS_OK) {
                int ignored = 0;
                (void)plat->file_remove(plat->user, dir, n.out, &ignored); /* the first error */
            }
        }
        if (rc != OPCOMMS_OK) (void)opc__err_set(err, rc, os, out);
    }
    if (rc != OPCOMMS_OK) (void)plat->file_remove(plat->user, dir, n.part, &os);
    (void)plat->file_remove(plat->user, dir, n.lock, &os); /* nobody else knows this log */
    plat->dir_close(plat->user, dir);
    return rc;
}

/* What else is to be had from a log that was read needs its secret. */
OPC__FN opcomms_err opc__look_blind(const opc__look *k, opcomms_err rc, opcomms_error *err) {
    if (rc != OPCOMMS_OK && rc != OPCOMMS_E_LOG_DAMAGED) return rc;
    if (k->log == NULL || !k->log->blind) return rc;
    return opc__err_set(err, OPCOMMS_E_ENCRYPTED, 0, "log");
}

/* Hands out as much of the report as the caller has room for; passes rc on. */
OPC__FN opcomms_err opc__look_report(const opc__look *k, opcomms_log_report *report,
                                     opcomms_err rc) {
    opcomms_log_report r = k->r;
    if (report == NULL) return rc;
    r.size = report->size < sizeof r ? report->size : (uint32_t)sizeof r;
    memcpy(report, &r, r.size);
    return rc;
}

/* Fills in what a callback is told of entry i of the index. */
OPC__FN opcomms_err opc__look_entry(opc__look *k, size_t i, opcomms_log_entry *e) {
    static const uint32_t state[4] = {OPCOMMS_ENTRY_ACKNOWLEDGED, OPCOMMS_ENTRY_UNREAD,
                                      OPCOMMS_ENTRY_SALVAGED, OPCOMMS_ENTRY_BROKEN};
    opc__msg_meta m;
    opcomms_err rc = opc__look_meta(k, k->m.ref[i], &m);
    if (rc != OPCOMMS_OK) return rc;
    memset(e, 0, sizeof *e);
    e->state = state[k->m.key[i] & 3u];
    e->flags = (m.flags & OPC__MSG_TEXT) ? OPCOMMS_MESSAGE_TEXT : 0;
    e->number = m.uid;
    e->bytes = m.bytes;
    e->offset = k->m.ref[i];
    e->time_s = m.time_s;
    if (m.kind == OPC__KIND_IN) {
        opc__str_hash_write(m.from, e->from.hash);
    } else {
        memcpy(e->from.hash, k->log->own, sizeof k->log->own);
        opc__str_hash_write(m.server, e->server);
        e->kind = m.kind == OPC__KIND_OUT ? OPCOMMS_ENTRY_QUEUED : OPCOMMS_ENTRY_DEAD_LETTER;
        e->attempts = m.attempts;
        e->code = m.code;
        e->dead_s = m.dead_s;
        e->context = m.context;
        e->context_len = m.context_len;
    }
    e->from.id = m.from_id;
    e->to = (const char *)m.dest;
    e->to_len = m.dest_len;
    e->to_id = m.dest_id;
    e->handle = k;
    return OPCOMMS_OK;
}

/* >>native ==== L2 ==== what two peers of this library say: frames written, and read from pieces */

/* Inside TLS, chosen by ALPN "opcomms/1". Integers are big-endian. A frame:
       0  type 1      1  flags 1      2  channel 2      4  length of the body 4: at most 16 448
   Types below 128 that are unknown are skipped, all others break the protocol; so does a flag, a
   channel, a length or a value that is not described here. The first frame of each side, and no
   other, is HELLO. HELLO, PING, PONG and BYE have channel 0, the others one of 1 to 65 535.
       1 HELLO   version 2 (1 or more; the lower one of both sides counts), flags 2 (bit 0: takes
                 OPEN on this connection; others are ignored), chunk 4 (1 024 to 16 384: the largest
                 payload in one frame it takes), message_max 8, now counter 8, now random 8, known
                 counter 8, known random 8 (the epoch I know you by; zero: none), count 2 (at most
                 250), zero 2, count x (counter 8, random 8): my other epochs with messages pending
                 for you, of ascending counters, all from 1 and below that of now.
       2 OPEN    the number of the channel is the opener's, each direction has numbers of its own.
                 stream 1 (1 queue, 2 direct), from_id 1, dest_id 1, wants 1 (acknowledgements
                 beside durable: bit 0 received, bit 1 consumed), epoch counter 8, random 8 (not
                 both zero), dest length 2 (1 to 1 024), zero 2, dest.
       3 STATE   code 4 (0: open; below: an opcomms_err, the channel is closed and DATA on it is
                 dropped until the next OPEN), zero 4, seen 8 (stored durably of this stream and
                 epoch up to here; 0: none), credit messages 8, credit bytes 8 (since OPEN: how much
                 may be sent in all).
       4 DATA    flags: bit 0 MORE, bit 1 TEXT, bit 3 UNCERTAIN (it was tried by tarpc as well: the
                 receiver may have it from there). number 8 (from 1), with MORE the bytes of the
                 whole message 8, then payload: with MORE at least 1 byte, and less than the whole.
       5 CHUNK   flags: bit 0 MORE, bit 2 ABORT (given up: drop what came). At least 1 byte of
                 payload, with ABORT none and no MORE.
       6 ACK     flags: level 1 received, 2 durable, 3 consumed. number 8 (all up to it; 0: none),
                 credit messages 8, credit bytes 8.
       7 REFUSE  number 8 (from 1), code 4 (below 0), zero 4: refused for good.
       8 CLOSE   no body: the opener is done with the channel.
       9 PING, 10 PONG   8 bytes, echoed.
      11 BYE     code 4 (at most 0), then at most 200 bytes of UTF-8: why the connection ends. */

enum {
    OPC__NATIVE_NONE = 0, /* of an event: more bytes are needed */
    OPC__NATIVE_HELLO = 1,
    OPC__NATIVE_OPEN,
    OPC__NATIVE_STATE,
    OPC__NATIVE_DATA,
    OPC__NATIVE_CHUNK,
    OPC__NATIVE_ACK,
    OPC__NATIVE_REFUSE,
    OPC__NATIVE_CLOSE,
    OPC__NATIVE_PING,
    OPC__NATIVE_PONG,
    OPC__NATIVE_BYE,
    OPC__NATIVE_PIECE = 256 /* of an event: payload of the DATA or CHUNK before goes on */
};
enum {
    OPC__NATIVE_MORE = 1,
    OPC__NATIVE_TEXT = 2,
    OPC__NATIVE_ABORT = 4,
    OPC__NATIVE_UNCERTAIN = 8
};
enum { OPC__NATIVE_TAKES_OPEN = 1 }; /* flags of HELLO */

#define OPC__NATIVE_VERSION 1u
#define OPC__NATIVE_HEAD 8u
#define OPC__NATIVE_BODY_MAX 16448u
#define OPC__NATIVE_CHUNK_MIN 1024u
#define OPC__NATIVE_CHUNK_MAX 16384u
#define OPC__NATIVE_EPOCHS 250u /* pending ones in a HELLO */
#define OPC__NATIVE_HELLO_FIXED 52u
#define OPC__NATIVE_HELLO_MAX (OPC__NATIVE_HELLO_FIXED + 16u * OPC__NATIVE_EPOCHS)
#define OPC__NATIVE_OPEN_FIXED 24u
#define OPC__NATIVE_DEST_MAX 1024u
#define OPC__NATIVE_BYE_TEXT 200u
#define OPC__NATIVE_DATA_HEAD 24u /* most that is written before the payload of a DATA */
OPC__STATIC_ASSERT(native_body, OPC__NATIVE_CHUNK_MAX + 16u <= OPC__NATIVE_BODY_MAX);
OPC__STATIC_ASSERT(native_dest, OPC__NATIVE_DEST_MAX == OPC__DEST_MAX);

typedef struct opc__hello {
    uint16_t version;
    uint16_t flags;
    uint32_t chunk;
    uint64_t message_max;
    opc__epoch now;
    opc__epoch known; /* both 0: none */
    uint32_t count;
    opc__epoch pending[OPC__NATIVE_EPOCHS];
} opc__hello;

/* What was read. Fields that are not named for its type mean nothing. p and n stay valid as long as
   the bytes that were fed, and until the next call. */
typedef struct opc__native_event {
    int type;
    uint8_t flags; /* DATA, CHUNK, PIECE; of ACK: the level */
    uint32_t channel;
    uint64_t number; /* DATA, ACK, REFUSE; of STATE: seen */
    uint64_t total;  /* DATA: bytes of the whole message */
    const uint8_t *p; /* DATA, CHUNK, PIECE: payload; OPEN: dest; BYE: text; PING, PONG: 8 bytes; */
    size_t n;         /* HELLO: the body, for opc__native_hello_read */
    uint32_t bytes;   /* DATA, CHUNK, PIECE: payload of this frame in all */
    uint32_t left;    /* the same: what of it is still to come, as PIECE */
    int32_t code;     /* STATE, REFUSE, BYE */
    uint64_t credit_messages; /* STATE, ACK */
    uint64_t credit_bytes;
    uint8_t stream; /* OPEN: OPC__STREAM_, and below */
    uint8_t from_id;
    uint8_t dest_id;
    uint8_t wants;
    opc__epoch epoch;
} opc__native_event;

/* ---- writers: bytes written, 0 when there is no room for all ---- */

OPC__FN void opc__native_put_epoch(uint8_t *p, const opc__epoch *e) {
    opc__buf_put64(p, e->counter);
    opc__buf_put64(p + 8, e->random);
}
OPC__FN void opc__native_get_epoch(const uint8_t *p, opc__epoch *e) {
    e->counter = opc__buf_be64(p);
    e->random = opc__buf_be64(p + 8);
}

OPC__FN void opc__native_head(uint8_t *p, unsigned type, unsigned flags, uint32_t channel,
                              size_t body) {
    OPCOMMS_ASSERT(channel <= 0xffffu);
    OPCOMMS_ASSERT(body <= OPC__NATIVE_BODY_MAX);
    p[0] = (uint8_t)type;
    p[1] = (uint8_t)flags;
    opc__buf_put16(p + 2, channel);
    opc__buf_put32(p + 4, (uint32_t)body);
}

OPC__FN size_t opc__native_hello(uint8_t *out, size_t cap, const opc__hello *h) {
    uint8_t *p = out + OPC__NATIVE_HEAD;
    size_t body;
    uint32_t i;
    OPCOMMS_ASSERT(h->count <= OPC__NATIVE_EPOCHS);
    OPCOMMS_ASSERT(h->chunk >= OPC__NATIVE_CHUNK_MIN);
    OPCOMMS_ASSERT(h->chunk <= OPC__NATIVE_CHUNK_MAX);
    body = OPC__NATIVE_HELLO_FIXED + (size_t)16 * h->count;
    if (cap < OPC__NATIVE_HEAD + body) return 0;
    opc__native_head(out, OPC__NATIVE_HELLO, 0, 0, body);
    opc__buf_put16(p, h->version);
    opc__buf_put16(p + 2, h->flags);
    opc__buf_put32(p + 4, h->chunk);
    opc__buf_put64(p + 8, h->message_max);
    opc__native_put_epoch(p + 16, &h->now);
    opc__native_put_epoch(p + 32, &h->known);
    opc__buf_put16(p + 48, h->count);
    opc__buf_put16(p + 50, 0);
    for (i = 0; i < h->count; i++) {
        opc__native_put_epoch(p + OPC__NATIVE_HELLO_FIXED + (size_t)16 * i, &h->pending[i]);
    }
    return OPC__NATIVE_HEAD + body;
}

/* Of *e: channel, stream, from_id, dest_id, wants, epoch, and dest as p and n. */
OPC__FN size_t opc__native_open(uint8_t *out, size_t cap, const opc__native_event *e) {
    uint8_t *p = out + OPC__NATIVE_HEAD;
    size_t body = OPC__NATIVE_OPEN_FIXED + e->n;
    OPCOMMS_ASSERT(e->channel > 0);
    OPCOMMS_ASSERT(e->n > 0);
    OPCOMMS_ASSERT(e->n <= OPC__NATIVE_DEST_MAX);
    if (cap < OPC__NATIVE_HEAD + body) return 0;
    opc__native_head(out, OPC__NATIVE_OPEN, 0, e->channel, body);
    p[0] = e->stream;
    p[1] = e->from_id;
    p[2] = e->dest_id;
    p[3] = e->wants;
    opc__native_put_epoch(p + 4, &e->epoch);
    opc__buf_put16(p + 20, (uint32_t)e->n);
    opc__buf_put16(p + 22, 0);
    memcpy(p + OPC__NATIVE_OPEN_FIXED, e->p, e->n);
    return OPC__NATIVE_HEAD + body;
}

OPC__FN size_t opc__native_state(uint8_t *out, size_t cap, uint32_t channel, int32_t code,
                                 uint64_t seen, uint64_t credit_messages, uint64_t credit_bytes) {
    OPCOMMS_ASSERT(code <= 0);
    OPCOMMS_ASSERT(channel > 0);
    if (cap < OPC__NATIVE_HEAD + 32u) return 0;
    opc__native_head(out, OPC__NATIVE_STATE, 0, channel, 32);
    opc__buf_put32(out + 8, (uint32_t)code);
    opc__buf_put32(out + 12, 0);
    opc__buf_put64(out + 16, seen);
    opc__buf_put64(out + 24, credit_messages);
    opc__buf_put64(out + 32, credit_bytes);
    return OPC__NATIVE_HEAD + 32u;
}

/* Everything before the payload, of which `bytes` are in this frame. flags: OPC__NATIVE_TEXT, and
   OPC__NATIVE_MORE with the whole message's bytes as `total`. */
OPC__FN size_t opc__native_data_head(uint8_t *out, size_t cap, uint32_t channel, unsigned flags,
                                     uint64_t number, uint64_t total, uint32_t bytes) {
    size_t fixed = (flags & OPC__NATIVE_MORE) ? 16 : 8;
    OPCOMMS_ASSERT(number > 0);
    OPCOMMS_ASSERT(bytes <= OPC__NATIVE_CHUNK_MAX);
    if (cap < OPC__NATIVE_HEAD + fixed) return 0;
    opc__native_head(out, OPC__NATIVE_DATA, flags, channel, fixed + bytes);
    opc__buf_put64(out + 8, number);
    if (flags & OPC__NATIVE_MORE) {
        OPCOMMS_ASSERT(bytes > 0);
        OPCOMMS_ASSERT(bytes < total);
        opc__buf_put64(out + 16, total);
    }
    return OPC__NATIVE_HEAD + fixed;
}

OPC__FN size_t opc__native_chunk_head(uint8_t *out, size_t cap, uint32_t channel, unsigned flags,
                                      uint32_t bytes) {
    OPCOMMS_ASSERT(bytes <= OPC__NATIVE_CHUNK_MAX);
    OPCOMMS_ASSERT((flags == OPC__NATIVE_ABORT) == (bytes == 0));
    if (cap < OPC__NATIVE_HEAD) return 0;
    opc__native_head(out, OPC__NATIVE_CHUNK, flags, channel, bytes);
    return OPC__NATIVE_HEAD;
}

OPC__FN size_t opc__native_ack(uint8_t *out, size_t cap, uint32_t channel, unsigned level,
                               uint64_t number, uint64_t credit_messages, uint64_t credit_bytes) {
    OPCOMMS_ASSERT(level >= OPC__LEVEL_RECEIVED);
    OPCOMMS_ASSERT(level <= OPC__LEVEL_CONSUMED);
    if (cap < OPC__NATIVE_HEAD + 24u) return 0;
    opc__native_head(out, OPC__NATIVE_ACK, level, channel, 24);
    opc__buf_put64(out + 8, number);
    opc__buf_put64(out + 16, credit_messages);
    opc__buf_put64(out + 24, credit_bytes);
    return OPC__NATIVE_HEAD + 24u;
}

OPC__FN size_t opc__native_refuse(uint8_t *out, size_t cap, uint32_t channel, uint64_t number,
                                  int32_t code) {
    OPCOMMS_ASSERT(code < 0);
    OPCOMMS_ASSERT(number > 0);
    if (cap < OPC__NATIVE_HEAD + 16u) return 0;
    opc__native_head(out, OPC__NATIVE_REFUSE, 0, channel, 16);
    opc__buf_put64(out + 8, number);
    opc__buf_put32(out + 16, (uint32_t)code);
    opc__buf_put32(out + 20, 0);
    return OPC__NATIVE_HEAD + 16u;
}

OPC__FN size_t opc__native_close(uint8_t *out, size_t cap, uint32_t channel) {
    OPCOMMS_ASSERT(channel > 0);
    if (cap < OPC__NATIVE_HEAD) return 0;
    opc__native_head(out, OPC__NATIVE_CLOSE, 0, channel, 0);
    return OPC__NATIVE_HEAD;
}

/* type: OPC__NATIVE_PING or _PONG. */
OPC__FN size_t opc__native_ping(uint8_t *out, size_t cap, int type, const uint8_t echo[8]) {
    OPCOMMS_ASSERT(type == OPC__NATIVE_PING || type == OPC__NATIVE_PONG);
    if (cap < OPC__NATIVE_HEAD + 8u) return 0;
    opc__native_head(out, (unsigned)type, 0, 0, 8);
    memcpy(out + 8, echo, 8);
    return OPC__NATIVE_HEAD + 8u;
}

/* What of the text is more than fits is left out, by whole characters. */
OPC__FN size_t opc__native_bye(uint8_t *out, size_t cap, int32_t code, const char *text) {
    size_t n = strlen(text);
    OPCOMMS_ASSERT(code <= 0);
    if (n > OPC__NATIVE_BYE_TEXT) n = OPC__NATIVE_BYE_TEXT;
    while (n > 0 && !opc__str_utf8_valid((const uint8_t *)text, n)) n--;
    if (cap < OPC__NATIVE_HEAD + 4u + n) return 0;
    opc__native_head(out, OPC__NATIVE_BYE, 0, 0, 4u + n);
    opc__buf_put32(out + 8, (uint32_t)code);
    if (n > 0) memcpy(out + 12, text, n);
    return OPC__NATIVE_HEAD + 4u + n;
}

/* ---- reader ---- */

enum {
    OPC__NATIVE_AT_HEAD = 0,
    OPC__NATIVE_AT_BODY, /* of a DATA: at what stands before the payload */
    OPC__NATIVE_AT_PAYLOAD,
    OPC__NATIVE_AT_SKIP,
    OPC__NATIVE_FAILED
};

typedef struct opc__native_in {
    int at;
    int greeted;    /* HELLO has been read */
    uint32_t chunk; /* the largest payload in one frame, as our HELLO said */
    uint8_t type;   /* of this frame */
    uint8_t flags;
    uint16_t channel;
    uint32_t need;  /* bytes of the body that are wanted in one piece */
    uint32_t bytes; /* payload behind them, */
    uint32_t left;  /* and what of it, or of a skipped body, is still to come */
    uint32_t have;  /* bytes of head or body collected */
    uint8_t head[OPC__NATIVE_HEAD];
    uint8_t body[OPC__NATIVE_HELLO_MAX];
} opc__native_in;
OPC__STATIC_ASSERT(native_in, sizeof(opc__native_in) <= 4160u);

OPC__FN void opc__native_begin(opc__native_in *in, uint32_t chunk) {
    OPCOMMS_ASSERT(chunk >= OPC__NATIVE_CHUNK_MIN);
    OPCOMMS_ASSERT(chunk <= OPC__NATIVE_CHUNK_MAX);
    memset(in, 0, offsetof(opc__native_in, body));
    in->chunk = chunk;
}

/* Reads the body of a HELLO; out NULL: only whether it is right. */
OPC__FN opcomms_err opc__native_hello_read(const uint8_t *p, size_t n, opc__hello *out) {
    opc__epoch now, known, e;
    uint32_t i, count, chunk;
    uint64_t last = 0;
    if (n < OPC__NATIVE_HELLO_FIXED) return OPCOMMS_E_PROTOCOL;
    chunk = opc__buf_be32(p + 4);
    count = opc__buf_be16(p + 48);
    opc__native_get_epoch(p + 16, &now);
    opc__native_get_epoch(p + 32, &known);
    if (opc__buf_be16(p) == 0 || opc__buf_be16(p + 50) != 0 || count > OPC__NATIVE_EPOCHS ||
        n != OPC__NATIVE_HELLO_FIXED + (size_t)16 * count || chunk < OPC__NATIVE_CHUNK_MIN ||
        chunk > OPC__NATIVE_CHUNK_MAX || (now.counter | now.random) == 0 ||
        (known.counter == 0 && known.random != 0)) {
        return OPCOMMS_E_PROTOCOL;
    }
    if (out != NULL) {
        out->version = (uint16_t)opc__buf_be16(p);
        out->flags = (uint16_t)opc__buf_be16(p + 2);
        out->chunk = chunk;
        out->message_max = opc__buf_be64(p + 8);
        out->now = now;
        out->known = known;
        out->count = count;
    }
    for (i = 0; i < count; i++) {
        opc__native_get_epoch(p + OPC__NATIVE_HELLO_FIXED + (size_t)16 * i, &e);
        if (e.counter <= last || e.counter >= now.counter) return OPCOMMS_E_PROTOCOL;
        last = e.counter;
        if (out != NULL) out->pending[i] = e;
    }
    return OPCOMMS_OK;
}

/* A head is complete: what may follow? */
OPC__FN opcomms_err opc__native_head_read(opc__native_in *in, const uint8_t *p) {
    static const struct {
        uint16_t least;
        uint16_t most;
        uint8_t flags; /* those there are */
        uint8_t channel;
    } rule[OPC__NATIVE_BYE + 1] = {
        {0, 0, 0, 0},
        {OPC__NATIVE_HELLO_FIXED, OPC__NATIVE_HELLO_MAX, 0, 0},
        {OPC__NATIVE_OPEN_FIXED + 1, OPC__NATIVE_OPEN_FIXED + OPC__NATIVE_DEST_MAX, 0, 1},
        {32, 32, 0, 1},
        {8, OPC__NATIVE_CHUNK_MAX + 16,
         OPC__NATIVE_MORE | OPC__NATIVE_TEXT | OPC__NATIVE_UNCERTAIN, 1},
        {0, OPC__NATIVE_CHUNK_MAX, OPC__NATIVE_MORE | OPC__NATIVE_ABORT, 1},
        {24, 24, 3, 1},
        {16, 16, 0, 1},
        {0, 0, 0, 1},
        {8, 8, 0, 0},
        {8, 8, 0, 0},
        {4, 4 + OPC__NATIVE_BYE_TEXT, 0, 0},
    };
    uint32_t n = opc__buf_be32(p + 4), need = n;
    unsigned type = p[0], flags = p[1];
    if (n > OPC__NATIVE_BODY_MAX || in->greeted == (type == OPC__NATIVE_HELLO)) {
        return OPCOMMS_E_PROTOCOL;
    }
    if (type == 0 || type > OPC__NATIVE_BYE) {
        in->left = n;
        in->at = OPC__NATIVE_AT_SKIP;
        return type < 128u ? OPCOMMS_OK : OPCOMMS_E_PROTOCOL;
    }
    in->type = (uint8_t)type;
    in->flags = (uint8_t)flags;
    in->channel = (uint16_t)opc__buf_be16(p + 2);
    if (n < rule[type].least || n > rule[type].most || (flags & ~(unsigned)rule[type].flags) != 0 ||
        (in->channel != 0) != rule[type].channel) {
        return OPCOMMS_E_PROTOCOL;
    }
    if (type == OPC__NATIVE_DATA) {
        need = (flags & OPC__NATIVE_MORE) ? 16 : 8;
        if (n < need || (need == 16 && n == need)) return OPCOMMS_E_PROTOCOL;
    } else if (type == OPC__NATIVE_CHUNK) {
        need = 0;
        if ((n == 0) != (flags == OPC__NATIVE_ABORT)) return OPCOMMS_E_PROTOCOL;
        if (flags > OPC__NATIVE_ABORT) return OPCOMMS_E_PROTOCOL; /* ABORT with MORE */
    } else if (type == OPC__NATIVE_ACK && flags == 0) {
        return OPCOMMS_E_PROTOCOL;
    }
    in->need = need;
    in->bytes = n - need;
    in->left = in->bytes;
    in->at = OPC__NATIVE_AT_BODY;
    return in->bytes <= in->chunk ? OPCOMMS_OK : OPCOMMS_E_PROTOCOL;
}

OPC__FN opcomms_err opc__native_open_read(const uint8_t *p, size_t n, opc__native_event *e) {
    OPCOMMS_ASSERT(n > OPC__NATIVE_OPEN_FIXED);
    e->stream = p[0];
    e->from_id = p[1];
    e->dest_id = p[2];
    e->wants = p[3];
    opc__native_get_epoch(p + 4, &e->epoch);
    e->p = p + OPC__NATIVE_OPEN_FIXED;
    e->n = n - OPC__NATIVE_OPEN_FIXED;
    if ((e->stream != OPC__STREAM_QUEUE && e->stream != OPC__STREAM_DIRECT) || e->wants > 3u ||
        (e->epoch.counter | e->epoch.random) == 0 || opc__buf_be16(p + 20) != e->n ||
        opc__buf_be16(p + 22) != 0) {
        return OPCOMMS_E_PROTOCOL;
    }
    return OPCOMMS_OK;
}

/* The code in a frame: an opcomms_err of this or of a newer version. */
OPC__FN opcomms_err opc__native_code(const uint8_t *p, int32_t *code) {
    uint32_t v = opc__buf_be32(p);
    *code = v == 0 ? 0 : -(int32_t)(0xffffffffu - v) - 1;
    return v == 0 || v >= 0x80000000u ? OPCOMMS_OK : OPCOMMS_E_PROTOCOL;
}

/* The `need` bytes of a body are at p. */
OPC__FN opcomms_err opc__native_body(opc__native_in *in, const uint8_t *p, opc__native_event *e) {
    size_t n = in->need;
    e->type = in->type;
    e->flags = in->flags;
    e->channel = in->channel;
    e->bytes = in->bytes;
    if (in->type == OPC__NATIVE_DATA) { /* first, because there are so many */
        e->number = opc__buf_be64(p);
        e->total = n == 16 ? opc__buf_be64(p + 8) : in->bytes;
        if (e->number == 0 || (n == 16 && e->total <= in->bytes)) return OPCOMMS_E_PROTOCOL;
        return OPCOMMS_OK;
    }
    e->p = p;
    e->n = n;
    switch (in->type) {
    case OPC__NATIVE_HELLO:
        in->greeted = 1;
        return opc__native_hello_read(p, n, NULL);
    case OPC__NATIVE_OPEN: return opc__native_open_read(p, n, e);
    case OPC__NATIVE_STATE:
        e->number = opc__buf_be64(p + 8);
        e->credit_messages = opc__buf_be64(p + 16);
        e->credit_bytes = opc__buf_be64(p + 24);
        if (opc__buf_be32(p + 4) != 0) return OPCOMMS_E_PROTOCOL;
        return opc__native_code(p, &e->code);
    case OPC__NATIVE_ACK:
        e->number = opc__buf_be64(p);
        e->credit_messages = opc__buf_be64(p + 8);
        e->credit_bytes = opc__buf_be64(p + 16);
        return OPCOMMS_OK;
    case OPC__NATIVE_REFUSE:
        e->number = opc__buf_be64(p);
        if (e->number == 0 || opc__buf_be32(p + 12) != 0) return OPCOMMS_E_PROTOCOL;
        if (opc__buf_be32(p + 8) == 0) return OPCOMMS_E_PROTOCOL;
        return opc__native_code(p + 8, &e->code);
    case OPC__NATIVE_BYE:
        e->p = p + 4;
        e->n = n - 4;
        if (!opc__str_utf8_valid(e->p, e->n)) return OPCOMMS_E_PROTOCOL;
        return opc__native_code(p, &e->code);
    default: return OPCOMMS_OK; /* CHUNK, CLOSE, PING, PONG */
    }
}

/* `want` bytes in one piece: where they lie if they are all there, else collected in `store`. NULL:
   there are not as many yet. */
OPC__FN const uint8_t *opc__native_gather(opc__native_in *in, uint8_t *store, uint32_t want,
                                          const uint8_t **at, const uint8_t *end) {
    const uint8_t *p = *at;
    size_t left = (size_t)(end - p), some = want - in->have;
    OPCOMMS_ASSERT(in->have <= want);
    if (in->have == 0 && left >= want) {
        *at = p + want;
        return p;
    }
    if (some > left) some = left;
    if (some > 0) memcpy(store + in->have, p, some);
    in->have += (uint32_t)some;
    *at = p + some;
    if (in->have < want) return NULL;
    in->have = 0;
    return store;
}

/* Takes one event of the n bytes at p, of which *used are then consumed: all, when the event is
   OPC__NATIVE_NONE. A message in one piece is one event and is not copied. OPCOMMS_E_PROTOCOL is
   final. */
OPC__FN opcomms_err opc__native_next(opc__native_in *in, const uint8_t *p, size_t n, size_t *used,
                                     opc__native_event *e) {
    const uint8_t *at = p, *end = p + n, *got;
    size_t some;
    e->type = OPC__NATIVE_NONE;
    for (;;) {
        if (in->at == OPC__NATIVE_AT_HEAD) {
            got = opc__native_gather(in, in->head, OPC__NATIVE_HEAD, &at, end);
            if (got == NULL) break;
            if (opc__native_head_read(in, got) != OPCOMMS_OK) in->at = OPC__NATIVE_FAILED;
        }
        if (in->at == OPC__NATIVE_FAILED) return OPCOMMS_E_PROTOCOL;
        if (in->at == OPC__NATIVE_AT_BODY) {
            got = opc__native_gather(in, in->body, in->need, &at, end);
            if (got == NULL) break;
            if (opc__native_body(in, got, e) != OPCOMMS_OK) {
                in->at = OPC__NATIVE_FAILED;
                return OPCOMMS_E_PROTOCOL;
            }
            in->at = in->left > 0 ? OPC__NATIVE_AT_PAYLOAD : OPC__NATIVE_AT_HEAD;
            if (in->type != OPC__NATIVE_DATA && in->type != OPC__NATIVE_CHUNK) break;
        } else if (at == end && in->left > 0) {
            break;
        }
        some = (size_t)(end - at) < in->left ? (size_t)(end - at) : in->left;
        got = at;
        at += some;
        in->left -= (uint32_t)some;
        if (in->at == OPC__NATIVE_AT_SKIP) {
            if (in->left == 0) in->at = OPC__NATIVE_AT_HEAD;
            continue;
        }
        if (in->left == 0) in->at = OPC__NATIVE_AT_HEAD;
        if (e->type == OPC__NATIVE_NONE) {
            e->type = OPC__NATIVE_PIECE;
            e->flags = in->flags;
            e->channel = in->channel;
            e->bytes = in->bytes;
        }
        e->p = got;
        e->n = some;
        e->left = in->left;
        break;
    }
    *used = (size_t)(at - p);
    OPCOMMS_ASSERT(*used <= n);
    return OPCOMMS_OK;
}

/* >>id ==== L3 ==== identifiers and addresses as text */

#define OPC__ID_HASH_MAX 128u

OPC__FN int opc__id_number(const char *s, size_t len, int16_t *out) {
    uint64_t v = 0;
    if (len > 0 && s[0] == '+') {
        s++;
        len--;
    }
    while (len > 1 && s[0] == '0') { /* any number of leading zeros, as the reference takes them */
        s++;
        len--;
    }
    if (!opc__str_u64(s, len, 255, &v)) return 0;
    *out = (int16_t)v;
    return 1;
}

/* How many bytes of white space (Unicode White_Space) s begins with. */
OPC__FN size_t opc__id_space(const uint8_t *s, size_t n) {
    if (n >= 1 && (s[0] == ' ' || (s[0] >= 9 && s[0] <= 13))) return 1;
    if (n >= 2 && s[0] == 0xc2 && (s[1] == 0x85 || s[1] == 0xa0)) return 2;
    if (n < 3) return 0;
    if (s[0] == 0xe1 && s[1] == 0x9a && s[2] == 0x80) return 3;
    if (s[0] == 0xe2 && s[1] == 0x80 &&
        ((s[2] >= 0x80 && s[2] <= 0x8a) || s[2] == 0xa8 || s[2] == 0xa9 || s[2] == 0xaf)) {
        return 3;
    }
    if (s[0] == 0xe2 && s[1] == 0x81 && s[2] == 0x9f) return 3;
    return s[0] == 0xe3 && s[1] == 0x80 && s[2] == 0x80 ? 3 : 0;
}

OPC__FN void opc__id_trim(const char **s, size_t *len) {
    size_t n, k;
    while ((n = opc__id_space((const uint8_t *)*s, *len)) > 0) {
        *s += n;
        *len -= n;
    }
    for (k = 1; k <= 3 && k <= *len; k++) {
        if (opc__id_space((const uint8_t *)*s + *len - k, k) == k) {
            *len -= k;
            k = 0;
        }
    }
}

/* Exactly one ':'. `rule`: "~" allowed, nothing trimmed, the hash may be empty. */
OPC__FN int opc__id_parse(const char *s, size_t len, int rule, opcomms_identifier *out) {
    const char *colon = len > 0 ? (const char *)memchr(s, ':', len) : NULL;
    const char *hash = s, *id;
    size_t hash_len, id_len;
    int16_t number = OPCOMMS_ANY_ID;
    if (colon == NULL) return 0;
    hash_len = (size_t)(colon - s);
    id = colon + 1;
    id_len = len - hash_len - 1;
    if (memchr(id, ':', id_len) != NULL) return 0;
    if (!rule) {
        opc__id_trim(&hash, &hash_len);
        opc__id_trim(&id, &id_len);
        if (hash_len == 0) return 0;
    }
    if (hash_len > OPC__ID_HASH_MAX || memchr(hash, 0, hash_len) != NULL) return 0;
    if (!opc__str_utf8_valid((const uint8_t *)hash, hash_len)) return 0; /* no file could hold it */
    if (!(rule && id_len == 1 && id[0] == '~') && !opc__id_number(id, id_len, &number)) return 0;
    memset(out, 0, sizeof *out);
    memcpy(out->hash, hash, hash_len);
    out->id = number;
    return 1;
}

OPC__FN void opc__id_format(opc__text *t, const opcomms_identifier *id) {
    opc__text_str(t, id->hash);
    opc__text_str(t, ":");
    if (id->id < 0) {
        opc__text_str(t, "~");
    } else {
        opc__text_u64(t, (uint64_t)id->id);
    }
}

/* Strict dotted quad: no leading zeros, no short forms. */
OPC__FN int opc__id_ip4(const char *s, size_t len, uint8_t out[4]) {
    size_t i = 0;
    int part;
    for (part = 0; part < 4; part++) {
        size_t start = i;
        uint64_t v = 0;
        while (i < len && s[i] != '.') i++;
        if (i - start > 3 || (i - start > 1 && s[start] == '0')) return 0;
        if (!opc__str_u64(s + start, i - start, 255, &v)) return 0;
        out[part] = (uint8_t)v;
        if (part < 3 && i++ >= len) return 0;
    }
    return i == len;
}

/* RFC 4291 2.2, all three forms; no scope. */
OPC__FN int opc__id_ip6(const char *s, size_t len, uint8_t out[16]) {
    uint8_t b[16];
    size_t i = 0, n = 0, gap = 17;
    memset(b, 0, sizeof b);
    if (len >= 2 && s[0] == ':' && s[1] == ':') {
        gap = 0;
        i = 2;
    }
    while (i < len) {
        size_t start = i;
        uint32_t v = 0;
        while (i < len && i - start < 5 && opc__str_hex_value((unsigned char)s[i]) >= 0) {
            v = (v << 4) | (uint32_t)opc__str_hex_value((unsigned char)s[i]);
            i++;
        }
        if (i < len && s[i] == '.') {
            if (n > 12 || !opc__id_ip4(s + start, len - start, b + n)) return 0;
            n += 4;
            i = len;
            break;
        }
        if (i == start || i - start > 4 || n > 14) return 0;
        opc__buf_put16(b + n, v);
        n += 2;
        if (i == len) break;
        if (s[i++] != ':') return 0;
        if (i == len) return 0;
        if (s[i] == ':') {
            if (gap != 17) return 0;
            gap = n;
            i++;
        }
    }
    if (gap == 17 ? n != 16 : n > 14) return 0;
    if (gap != 17) {
        memmove(b + 16 - (n - gap), b + gap, n - gap);
        memset(b + gap, 0, 16 - n);
    }
    memcpy(out, b, 16);
    return 1;
}

OPC__FN opcomms_err opc__id_ip_parse(const char *s, size_t len, opcomms_address *out) {
    opcomms_address a;
    memset(&a, 0, sizeof a);
    if (opc__id_ip4(s, len, a.ip)) {
        a.family = 4;
    } else if (opc__id_ip6(s, len, a.ip)) {
        a.family = 6;
    } else {
        return OPCOMMS_E_ADDRESS;
    }
    *out = a;
    return OPCOMMS_OK;
}

/* "1.2.3.4:80" or "[::1]:80". */
OPC__FN opcomms_err opc__id_address_parse(const char *s, size_t len, opcomms_address *out) {
    size_t colon = len;
    uint64_t port = 0;
    opcomms_address a;
    while (colon > 0 && s[colon - 1] != ':') colon--;
    if (colon == 0 || len - colon > 5 || !opc__str_u64(s + colon, len - colon, 65535, &port)) {
        return OPCOMMS_E_ADDRESS;
    }
    colon--;
    if (colon >= 2 && s[0] == '[' && s[colon - 1] == ']') {
        if (opc__id_ip_parse(s + 1, colon - 2, &a) != OPCOMMS_OK || a.family != 6) {
            return OPCOMMS_E_ADDRESS;
        }
    } else if (opc__id_ip_parse(s, colon, &a) != OPCOMMS_OK || a.family != 4) {
        return OPCOMMS_E_ADDRESS;
    }
    a.port = (uint16_t)port;
    *out = a;
    return OPCOMMS_OK;
}

OPC__FN int opc__id_is_mapped(const opcomms_address *a) {
    static const uint8_t prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    return a->family == 6 && memcmp(a->ip, prefix, 12) == 0;
}

/* ::ffff:1.2.3.4 is 1.2.3.4. */
OPC__FN int opc__id_ip_equal(const opcomms_address *a, const opcomms_address *b) {
    const uint8_t *pa = a->ip, *pb = b->ip;
    int fa = a->family, fb = b->family;
    if (opc__id_is_mapped(a)) {
        pa += 12;
        fa = 4;
    }
    if (opc__id_is_mapped(b)) {
        pb += 12;
        fb = 4;
    }
    return fa == fb && fa != 0 && memcmp(pa, pb, fa == 4 ? 4 : 16) == 0;
}

/* The same IP address and port. */
OPC__FN int opc__id_same(const opcomms_address *a, const opcomms_address *b) {
    return a->port == b->port && opc__id_ip_equal(a, b);
}

OPC__FN void opc__id_address_format(const opcomms_address *a, int with_port, char out[64]) {
    opc__text t;
    int i;
    opc__text_init(&t, out, 64);
    if (a->family == 4) {
        for (i = 0; i < 4; i++) {
            if (i > 0) opc__text_str(&t, ".");
            opc__text_u64(&t, a->ip[i]);
        }
    } else {
        int best = -1, best_len = 1; /* RFC 5952 4.2: the first longest run of two or more zeros */
        for (i = 0; i < 8; i++) {
            int n = 0;
            while (i + n < 8 && opc__buf_be16(a->ip + 2 * (i + n)) == 0) n++;
            if (n > best_len) {
                best = i;
                best_len = n;
            }
        }
        if (with_port) opc__text_str(&t, "[");
        for (i = 0; i < 8; i++) {
            static const char hex[] = "0123456789abcdef";
            uint32_t v = opc__buf_be16(a->ip + 2 * i);
            int shift = 12;
            if (i == best) {
                opc__text_str(&t, "::");
                i += best_len - 1;
                continue;
            }
            if (i > 0 && i != best + best_len) opc__text_str(&t, ":");
            while (shift > 0 && (v >> shift) == 0) shift -= 4;
            for (; shift >= 0; shift -= 4) opc__text_bytes(&t, &hex[(v >> shift) & 15u], 1);
        }
        if (with_port) opc__text_str(&t, "]");
    }
    if (with_port) {
        opc__text_str(&t, ":");
        opc__text_u64(&t, a->port);
    }
}

/* >>allow ==== L3 ==== shared lists of rules, and the allow list */

#define OPC__LIST_MAX 65536u
#define OPC__LIST_WATCHERS 64u
#define OPC__LIST_FILE_MAX ((size_t)16 << 20)

/* One rule: hash and address for the allow list, from and to for the routing table. */
typedef struct opc__rule {
    char *a;
    uint32_t a_len;
    char *b; /* NULL in the allow list; in the table NULL is a source without destinations */
    uint32_t b_len;
    opcomms_address ip; /* family 0: any */
} opc__rule;

/* Rules sorted by (a, b). */
typedef struct opc__rules {
    opc__rule *rule;
    uint32_t count;
    uint32_t cap;
    uint32_t any_ip; /* rules without address */
    int all;
} opc__rules;

typedef struct opc__list {
    opc__mem mem;
    opc__mutex lock;
    uint32_t refs;
    uint64_t generation;
    opc__rules now;
    char path[OPC__PATH_MAX];
    struct {
        void (*wake)(void *user);
        void *user;
    } watcher[OPC__LIST_WATCHERS];
    uint32_t watchers;
} opc__list;

struct opcomms_allow_list {
    opc__list l;
};

OPC__FN int opc__rule_bytes(const char *a, uint32_t a_len, const char *b, uint32_t b_len) {
    uint32_t n = a_len < b_len ? a_len : b_len;
    int c = n > 0 ? memcmp(a, b, n) : 0;
    if (c != 0) return c;
    return a_len < b_len ? -1 : (a_len > b_len ? 1 : 0);
}

OPC__FN int opc__rule_order(const opc__rule *x, const opc__rule *y) {
    int c = opc__rule_bytes(x->a, x->a_len, y->a, y->a_len);
    if (c != 0) return c;
    if (x->b == NULL || y->b == NULL) return (x->b != NULL) - (y->b != NULL);
    return opc__rule_bytes(x->b, x->b_len, y->b, y->b_len);
}

/* Index of the first rule not before `key`. */
OPC__FN uint32_t opc__rules_at(const opc__rules *r, const opc__rule *key) {
    uint32_t lo = 0, hi = r->count;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (opc__rule_order(&r->rule[mid], key) < 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

OPC__FN void opc__rule_key(opc__rule *k, const char *a, size_t a_len, const char *b,
                           size_t b_len) {
    union {
        const char *in;
        char *out;
    } u;
    memset(k, 0, sizeof *k);
    u.in = a; /* only compared, never written through */
    k->a = u.out;
    k->a_len = (uint32_t)a_len;
    u.in = b;
    k->b = u.out;
    k->b_len = (uint32_t)b_len;
}

OPC__FN int opc__rules_find(const opc__rules *r, const opc__rule *key, uint32_t *at) {
    *at = opc__rules_at(r, key);
    return *at < r->count && opc__rule_order(&r->rule[*at], key) == 0;
}

OPC__FN void opc__rules_drop(opc__mem *mem, opc__rules *r, uint32_t i) {
    opc__rule *x = &r->rule[i];
    if (x->ip.family == 0) r->any_ip--;
    opc__mem_free(mem, x->a, (size_t)x->a_len + 1u);
    opc__mem_free(mem, x->b, (size_t)x->b_len + 1u);
    memmove(x, x + 1, (size_t)(r->count - i - 1) * sizeof *x);
    r->count--;
}

OPC__FN void opc__rules_free(opc__mem *mem, opc__rules *r) {
    while (r->count > 0) opc__rules_drop(mem, r, r->count - 1);
    opc__mem_free(mem, r->rule, (size_t)r->cap * sizeof *r->rule);
    memset(r, 0, sizeof *r);
}

/* Inserts a copy of `key`, or replaces its address. */
OPC__FN opcomms_err opc__rules_add(opc__mem *mem, opc__rules *r, const opc__rule *key) {
    uint32_t at = 0;
    opc__rule fresh;
    if (opc__rules_find(r, key, &at)) {
        if (r->rule[at].ip.family == 0) r->any_ip--;
        if (key->ip.family == 0) r->any_ip++;
        r->rule[at].ip = key->ip;
        return OPCOMMS_OK;
    }
    if (r->count >= OPC__LIST_MAX) return OPCOMMS_E_LIMIT;
    if (r->count == r->cap) {
        uint32_t cap = r->cap == 0 ? 16 : r->cap * 2;
        opc__rule *p = (opc__rule *)opc__mem_array(mem, cap, sizeof *p);
        if (p == NULL) return OPCOMMS_E_NOMEM;
        if (r->count > 0) memcpy(p, r->rule, (size_t)r->count * sizeof *p);
        opc__mem_free(mem, r->rule, (size_t)r->cap * sizeof *p);
        r->rule = p;
        r->cap = cap;
    }
    fresh = *key;
    fresh.b = NULL;
    fresh.a = (char *)opc__mem_alloc(mem, (size_t)key->a_len + 1u);
    if (fresh.a == NULL) return OPCOMMS_E_NOMEM;
    if (key->b != NULL) {
        fresh.b = (char *)opc__mem_alloc(mem, (size_t)key->b_len + 1u);
        if (fresh.b == NULL) {
            opc__mem_free(mem, fresh.a, (size_t)key->a_len + 1u);
            return OPCOMMS_E_NOMEM;
        }
        if (key->b_len > 0) memcpy(fresh.b, key->b, key->b_len);
    }
    if (key->a_len > 0) memcpy(fresh.a, key->a, key->a_len);
    memmove(&r->rule[at + 1], &r->rule[at], (size_t)(r->count - at) * sizeof *r->rule);
    r->rule[at] = fresh;
    r->count++;
    if (fresh.ip.family == 0) r->any_ip++;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__list_new(const opcomms_allocator *alloc, size_t bytes, opc__list **out) {
    opc__mem mem;
    opc__list *l;
    memset(&mem, 0, sizeof mem);
    mem.alloc = alloc != NULL ? alloc->alloc : opc__plat_malloc;
    mem.release = alloc != NULL ? alloc->release : opc__plat_free;
    mem.user = alloc != NULL ? alloc->user : NULL;
    if (mem.alloc == NULL || mem.release == NULL) return OPCOMMS_E_INVAL;
    l = (opc__list *)opc__mem_alloc(&mem, bytes);
    if (l == NULL) return OPCOMMS_E_NOMEM;
    if (!opc__mutex_init(&l->lock)) {
        opc__mem_free(&mem, l, bytes);
        return OPCOMMS_E_NOMEM;
    }
    l->mem = mem;
    l->refs = 1;
    *out = l;
    return OPCOMMS_OK;
}

OPC__FN void opc__list_retain(opc__list *l) {
    opc__mutex_lock(&l->lock);
    l->refs++;
    opc__mutex_unlock(&l->lock);
}

OPC__FN void opc__list_release(opc__list *l, size_t bytes) {
    opc__mem mem;
    uint32_t left;
    opc__mutex_lock(&l->lock);
    OPCOMMS_ASSERT(l->refs > 0);
    left = --l->refs;
    opc__mutex_unlock(&l->lock);
    if (left > 0) return;
    opc__rules_free(&l->mem, &l->now);
    opc__mutex_destroy(&l->lock);
    mem = l->mem;
    opc__mem_free(&mem, l, bytes);
}

/* Called with the lock: everybody who watches looks again. The wake functions take no lock. */
OPC__FN void opc__list_changed(opc__list *l) {
    uint32_t i;
    opc__thread_put64(&l->generation, l->generation + 1u);
    for (i = 0; i < l->watchers; i++) l->watcher[i].wake(l->watcher[i].user);
}

OPC__FN opcomms_err opc__list_watch(opc__list *l, void (*wake)(void *user), void *user) {
    opcomms_err rc = OPCOMMS_E_LIMIT;
    opc__mutex_lock(&l->lock);
    if (l->watchers < OPC__LIST_WATCHERS) {
        l->watcher[l->watchers].wake = wake;
        l->watcher[l->watchers].user = user;
        l->watchers++;
        rc = OPCOMMS_OK;
    }
    opc__mutex_unlock(&l->lock);
    return rc;
}

OPC__FN void opc__list_unwatch(opc__list *l, void (*wake)(void *user), void *user) {
    uint32_t i;
    opc__mutex_lock(&l->lock);
    for (i = 0; i < l->watchers; i++) {
        if (l->watcher[i].wake == wake && l->watcher[i].user == user) {
            l->watcher[i] = l->watcher[--l->watchers];
            break;
        }
    }
    opc__mutex_unlock(&l->lock);
}

/* "allow_all", white space around it. */
OPC__FN int opc__list_is_all(const char *text, size_t len) {
    opc__id_trim(&text, &len);
    return len == 9 && memcmp(text, "allow_all", 9) == 0;
}

/* A growing text for saving. */
typedef struct opc__list_text {
    opc__mem *mem;
    char *p;
    size_t len;
    size_t cap;
    int failed;
} opc__list_text;

OPC__FN void opc__list_put(opc__list_text *t, const char *s, size_t n) {
    if (t->failed) return;
    if (n > t->cap - t->len) {
        size_t cap = (t->cap + n) * 2 + 256;
        char *p = (char *)opc__mem_alloc(t->mem, cap);
        if (p == NULL) {
            t->failed = 1;
            return;
        }
        if (t->len > 0) memcpy(p, t->p, t->len);
        opc__mem_free(t->mem, t->p, t->cap);
        t->p = p;
        t->cap = cap;
    }
    if (n > 0) memcpy(t->p + t->len, s, n);
    t->len += n;
}

/* As a double-quoted YAML text, which is right for any content. */
OPC__FN void opc__list_quote(opc__list_text *t, const char *s, size_t n) {
    static const char hex[] = "0123456789abcdef";
    size_t i = 0;
    opc__list_put(t, "\"", 1);
    while (i < n) {
        const uint8_t *b = (const uint8_t *)s + i;
        size_t bad = opc__yaml_refused(s + i, n - i), k;
        uint32_t u = bad == 2 ? b[1] : b[0]; /* U+0080 to U+009F end in the byte of their number */
        char e[6];
        if (bad == 3) u = ((b[0] & 15u) << 12) | ((b[1] & 63u) << 6) | (b[2] & 63u);
        if (bad == 0 && b[0] < 0x20u) bad = 1; /* tab and line ends */
        if (s[i] == '"' || s[i] == '\\') opc__list_put(t, "\\", 1);
        if (bad == 0) {
            opc__list_put(t, &s[i++], 1);
            continue;
        }
        e[0] = '\\';
        e[1] = 'u';
        for (k = 0; k < 4; k++) e[2 + k] = hex[(u >> (12 - 4 * k)) & 15u];
        opc__list_put(t, e, sizeof e);
        i += bad;
    }
    opc__list_put(t, "\"", 1);
}

/* What reading a file collects. */
typedef struct opc__list_reader {
    opc__mem *mem;
    opc__rules rules;
    char key[OPC__YAML_TEXT];
    size_t key_len;
    int in_list;
    opcomms_err rc; /* not the text's fault */
} opc__list_reader;

OPC__FN const char *opc__list_take(opc__list_reader *r, const opc__rule *key) {
    r->rc = opc__rules_add(r->mem, &r->rules, key);
    return r->rc == OPCOMMS_OK ? NULL : opc__err_text(r->rc);
}

OPC__FN const char *opc__allow_event(void *user, int event, const char *text, size_t len) {
    opc__list_reader *r = (opc__list_reader *)user;
    opc__rule key;
    if (event == OPC__YAML_KEY) {
        memcpy(r->key, text, len);
        r->key_len = len;
        return NULL;
    }
    if (event == OPC__YAML_LIST || event == OPC__YAML_ITEM) {
        return "an IP address or null is expected";
    }
    opc__rule_key(&key, r->key, r->key_len, NULL, 0);
    if (event == OPC__YAML_SCALAR && opc__id_ip_parse(text, len, &key.ip) != OPCOMMS_OK) {
        return "not an IP address";
    }
    return opc__list_take(r, &key);
}

/* Reads text by `on` and, only when all of it is good, puts it in force. */
OPC__FN opcomms_err opc__list_load_text(opc__list *l, opc__yaml_fn on, const char *text,
                                        size_t len, opcomms_error *err) {
    opc__list_reader *r;
    opcomms_err rc = OPCOMMS_OK;
    opc__mutex_lock(&l->lock);
    r = (opc__list_reader *)opc__mem_alloc(&l->mem, sizeof *r);
    if (r == NULL) {
        opc__mutex_unlock(&l->lock);
        return opc__err_set(err, OPCOMMS_E_NOMEM, 0, NULL);
    }
    r->mem = &l->mem;
    if (opc__list_is_all(text, len)) {
        r->rules.all = 1;
    } else {
        rc = opc__yaml_parse(text, len, on, r, err);
        if (rc != OPCOMMS_OK && r->rc != OPCOMMS_OK) {
            rc = r->rc;
            if (err != NULL) err->code = rc;
        }
    }
    if (rc == OPCOMMS_OK) {
        opc__rules old = l->now;
        l->now = r->rules;
        r->rules = old;
        opc__list_changed(l);
    }
    opc__rules_free(&l->mem, &r->rules);
    opc__mem_free(&l->mem, r, sizeof *r);
    opc__mutex_unlock(&l->lock);
    return rc;
}

OPC__FN opcomms_err opc__list_load(opc__list *l, opc__yaml_fn on, const char *path,
                                   opcomms_error *err) {
    char *text = NULL;
    size_t len = 0;
    opc__mem mem = l->mem; /* the allocator; this copy counts for itself */
    opcomms_err rc;
    if (strlen(path) >= sizeof l->path) return opc__err_set(err, OPCOMMS_E_INVAL, 0, "path");
    if (opc__plat_default() == NULL) return opc__err_set(err, OPCOMMS_E_UNSUPPORTED, 0, NULL);
    mem.used = 0;
    rc = opc__plat_read_file(opc__plat_default(), &mem, path, OPC__LIST_FILE_MAX, &text, &len, err);
    if (rc != OPCOMMS_OK) return rc;
    rc = opc__list_load_text(l, on, text, len, err);
    opc__mem_free(&mem, text, len + 1);
    if (rc != OPCOMMS_OK) return rc;
    opc__mutex_lock(&l->lock);
    memcpy(l->path, path, strlen(path) + 1);
    opc__mutex_unlock(&l->lock);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__list_reload(opc__list *l, opc__yaml_fn on, opcomms_error *err) {
    char path[OPC__PATH_MAX];
    opc__mutex_lock(&l->lock);
    memcpy(path, l->path, sizeof path);
    opc__mutex_unlock(&l->lock);
    if (path[0] == 0) return opc__err_set(err, OPCOMMS_E_NOT_FOUND, 0, "nothing was loaded before");
    return opc__list_load(l, on, path, err);
}

/* Writes the rules as YAML. allow_all is written as the reference's reader wants it: exactly the
   word, without a line end. */
OPC__FN opcomms_err opc__list_save(opc__list *l, int routes, const char *path,
                                   opcomms_error *err) {
    opc__list_text t;
    opc__mem mem = l->mem;
    uint32_t i;
    opcomms_err rc;
    if (opc__plat_default() == NULL) return opc__err_set(err, OPCOMMS_E_UNSUPPORTED, 0, NULL);
    mem.used = 0;
    memset(&t, 0, sizeof t);
    t.mem = &mem;
    opc__mutex_lock(&l->lock);
    if (l->now.all) opc__list_put(&t, "allow_all", 9);
    if (!l->now.all && l->now.count == 0) opc__list_put(&t, "{}\n", 3);
    for (i = 0; !l->now.all && i < l->now.count; i++) {
        const opc__rule *r = &l->now.rule[i];
        char ip[64];
        int again = i > 0 && opc__rule_bytes(r->a, r->a_len, r[-1].a, r[-1].a_len) == 0;
        if (!again) {
            opc__list_quote(&t, r->a, r->a_len);
            opc__list_put(&t, ":", 1);
        }
        if (r->b != NULL) {
            opc__list_put(&t, again ? "  - " : "\n  - ", again ? 4 : 5);
            opc__list_quote(&t, r->b, r->b_len);
        } else if (routes) { /* a source as such; its destinations, if any, follow */
            int more = i + 1 < l->now.count &&
                       opc__rule_bytes(r->a, r->a_len, r[1].a, r[1].a_len) == 0;
            if (!more) opc__list_put(&t, " []", 3);
        } else if (r->ip.family != 0) {
            opc__id_address_format(&r->ip, 0, ip);
            opc__list_put(&t, " ", 1);
            opc__list_quote(&t, ip, strlen(ip)); /* 1:: is no plain text in YAML */
        } else {
            opc__list_put(&t, " null", 5);
        }
        opc__list_put(&t, "\n", 1);
    }
    opc__mutex_unlock(&l->lock);
    rc = t.failed ? opc__err_set(err, OPCOMMS_E_NOMEM, 0, NULL)
                  : opc__plat_write_file_atomic(opc__plat_default(), path, t.p, t.len, err);
    opc__mem_free(&mem, t.p, t.cap);
    return rc;
}

OPC__FN void opc__allow_lock(opcomms_allow_list *a) { opc__mutex_lock(&a->l.lock); }
OPC__FN void opc__allow_unlock(opcomms_allow_list *a) { opc__mutex_unlock(&a->l.lock); }

/* `from` NULL asks for the hash alone. */
OPC__FN int opc__allow_text_locked(const opcomms_allow_list *a, const char *hash, size_t len,
                                   const opcomms_address *from) {
    opc__rule key;
    uint32_t at = 0;
    if (a->l.now.all) return 1;
    opc__rule_key(&key, hash, len, NULL, 0);
    if (!opc__rules_find(&a->l.now, &key, &at)) return 0;
    if (from == NULL || a->l.now.rule[at].ip.family == 0) return 1;
    return opc__id_ip_equal(&a->l.now.rule[at].ip, from);
}

OPC__FN int opc__allow_check_locked(const opcomms_allow_list *a, const uint8_t hash[32],
                                    const opcomms_address *from) {
    char text[65];
    opc__str_hash_write(hash, text);
    return opc__allow_text_locked(a, text, 64, from);
}

OPC__FN int opc__allow_check(opcomms_allow_list *a, const uint8_t hash[32],
                             const opcomms_address *from) {
    int ok;
    opc__allow_lock(a);
    ok = opc__allow_check_locked(a, hash, from);
    opc__allow_unlock(a);
    return ok;
}

/* Could any entry admit this address? 2: an entry names it, 1: some entry takes any address. */
OPC__FN int opc__allow_address(opcomms_allow_list *a, const opcomms_address *from) {
    uint32_t i;
    int named = 0, any;
    opc__allow_lock(a);
    any = a->l.now.all || a->l.now.any_ip > 0;
    for (i = 0; !named && i < a->l.now.count; i++) {
        named = opc__id_ip_equal(&a->l.now.rule[i].ip, from);
    }
    opc__allow_unlock(a);
    return named ? 2 : any;
}

OPC__FN uint64_t opc__allow_generation(opcomms_allow_list *a) {
    return opc__thread_get64(&a->l.generation, &a->l.lock);
}

OPC__FN opcomms_err opc__allow_watch(opcomms_allow_list *a, void (*wake)(void *user),
                                     void *user) {
    return opc__list_watch(&a->l, wake, user);
}
OPC__FN void opc__allow_unwatch(opcomms_allow_list *a, void (*wake)(void *user), void *user) {
    opc__list_unwatch(&a->l, wake, user);
}

/* >>route ==== L3 ==== the routing table */

struct opcomms_routing_table {
    opc__list l;
};

#define OPC__ROUTE_TEXT 1040u

OPC__FN const char *opc__route_event(void *user, int event, const char *text, size_t len) {
    opc__list_reader *r = (opc__list_reader *)user;
    opcomms_identifier id;
    char norm[160];
    opc__text t;
    opc__rule key;
    if (event == OPC__YAML_SCALAR) return "a list of hash:id or hash:~ is expected";
    /* the reference takes an empty value as an empty list, but not an explicit null */
    if (event == OPC__YAML_NULL && len > 0) return "a list of hash:id or hash:~ is expected";
    if (event == OPC__YAML_KEY || event == OPC__YAML_ITEM) {
        if (!opc__id_parse(text, len, 1, &id)) return "not of the form hash:id or hash:~";
        opc__text_init(&t, norm, sizeof norm);
        opc__id_format(&t, &id);
    }
    if (event == OPC__YAML_KEY) {
        uint32_t at;
        memcpy(r->key, norm, t.len);
        r->key_len = t.len;
        opc__rule_key(&key, norm, t.len, NULL, 0);
        at = opc__rules_at(&r->rules, &key);
        while (at < r->rules.count && /* the last of equal keys wins */
               opc__rule_bytes(r->rules.rule[at].a, r->rules.rule[at].a_len, norm,
                               (uint32_t)t.len) == 0) {
            opc__rules_drop(r->mem, &r->rules, at);
        }
        return NULL;
    }
    if (event == OPC__YAML_ITEM) {
        opc__rule_key(&key, r->key, r->key_len, norm, t.len);
    } else { /* a source exists, without destinations so far */
        opc__rule_key(&key, r->key, r->key_len, NULL, 0);
    }
    return opc__list_take(r, &key);
}

OPC__FN int opc__route_try(const opc__rules *r, const char *from, size_t from_len, const char *to,
                           size_t to_len) {
    opc__rule key;
    uint32_t at = 0;
    opc__rule_key(&key, from, from_len, to, to_len);
    return opc__rules_find(r, &key, &at);
}

/* Writes both forms of an identifier, "hash:id" and "hash:~", one behind the other. */
OPC__FN void opc__route_forms(const uint8_t *hash, size_t len, uint8_t id, char *out,
                              size_t end[2]) {
    opc__text t;
    opc__text_init(&t, out, 2 * OPC__ROUTE_TEXT);
    opc__text_bytes(&t, (const char *)hash, len);
    opc__text_str(&t, ":");
    opc__text_u64(&t, id);
    end[0] = t.len;
    opc__text_bytes(&t, (const char *)hash, len);
    opc__text_str(&t, ":~");
    end[1] = t.len;
    OPCOMMS_ASSERT(!t.cut);
}

OPC__FN int opc__route_can(opcomms_routing_table *table, const uint8_t *from, size_t from_len,
                           uint8_t from_id, const uint8_t *to, size_t to_len, uint8_t to_id) {
    char a[2 * OPC__ROUTE_TEXT], b[2 * OPC__ROUTE_TEXT];
    size_t ea[2], eb[2];
    int ok, i, j;
    if (from_len > OPC__ROUTE_TEXT - 8u || to_len > OPC__ROUTE_TEXT - 8u) return 0;
    opc__route_forms(from, from_len, from_id, a, ea);
    opc__route_forms(to, to_len, to_id, b, eb);
    opc__mutex_lock(&table->l.lock);
    ok = table->l.now.all;
    for (i = 0; i < 2; i++) {
        for (j = 0; j < 2 && !ok; j++) {
            ok = opc__route_try(&table->l.now, a + (i ? ea[0] : 0), ea[i] - (i ? ea[0] : 0),
                                b + (j ? eb[0] : 0), eb[j] - (j ? eb[0] : 0));
        }
    }
    opc__mutex_unlock(&table->l.lock);
    return ok;
}

/* Changes with every change of the table. */
OPC__FN uint64_t opc__route_generation(opcomms_routing_table *t) {
    return opc__thread_get64(&t->l.generation, &t->l.lock);
}

/* >>settings ==== L3 ==== settings from a YAML file, by one table of keys */

enum {
    OPC__SETTINGS_ADDRESS = 0,
    OPC__SETTINGS_PATH,
    OPC__SETTINGS_ALLOW, /* a path, the word allow_all, or the rules themselves; so are routes */
    OPC__SETTINGS_ROUTES,
    OPC__SETTINGS_DURABILITY,
    OPC__SETTINGS_PROTOCOL,
    OPC__SETTINGS_FLAG, /* true sets the bit `max` of flags */
    OPC__SETTINGS_U32,
    OPC__SETTINGS_U64,
    OPC__SETTINGS_RATE, /* U32, or the word unlimited */
    OPC__SETTINGS_KB,   /* U32 in bytes, written in units of 1 024 */
    OPC__SETTINGS_PART  /* from 0 to 1 with decimals; checked only */
};

#define OPC__SETTINGS_KEYS 51u
#define OPC__SETTINGS_GROUPS 4u
#define OPC__SETTINGS_TEXTS 6u /* the address, three paths, two lists */

struct opcomms_settings {
    opcomms_config cfg;
    uint32_t unused; /* what the reference has and this version has no use for */
    opc__mem mem;
    uint32_t line[OPC__SETTINGS_KEYS]; /* where the key stands; 0: nowhere */
    char text[OPC__SETTINGS_TEXTS * OPC__PATH_MAX];
    size_t text_len;
};
OPC__STATIC_ASSERT(settings_begin, offsetof(struct opcomms_settings, cfg) == 0);

typedef struct opc__settings_key {
    const char *name;
    uint8_t group; /* 0: none; else its place in opc__settings_groups, plus 1 */
    uint8_t kind;
    uint16_t at; /* offset in opcomms_settings, hence in opcomms_config */
    uint64_t min;
    uint64_t max;
} opc__settings_key;

#define OPC__SETTINGS_AT(field) (uint16_t) offsetof(opcomms_config, field)
#define OPC__SETTINGS_NO_USE (uint16_t) offsetof(struct opcomms_settings, unused)

static const char *const opc__settings_groups[OPC__SETTINGS_GROUPS] = {
    "rate_limiter_config", "broker_node_config", "msg_size_config", "queue_config"};

/* The ranges are those of opcomms_new. Its 0, which stands for the default, is refused: in a file
   it would be read as "none", and leaving the key out says what is meant. */
static const opc__settings_key opc__settings_keys[OPC__SETTINGS_KEYS] = {
    {"address", 0, OPC__SETTINGS_ADDRESS, OPC__SETTINGS_AT(address), 0, 0},
    {"key_file", 0, OPC__SETTINGS_PATH, OPC__SETTINGS_AT(key_file), 0, 0},
    {"ca_key_file", 0, OPC__SETTINGS_PATH, OPC__SETTINGS_AT(ca_key_file), 0, 0},
    {"allow", 0, OPC__SETTINGS_ALLOW, OPC__SETTINGS_AT(allow), 0, 0},
    {"routes", 0, OPC__SETTINGS_ROUTES, OPC__SETTINGS_AT(routes), 0, 0},
    {"log_path", 0, OPC__SETTINGS_PATH, OPC__SETTINGS_AT(log_path), 0, 0},
    {"durability", 0, OPC__SETTINGS_DURABILITY, OPC__SETTINGS_AT(durability), 0, 0},
    {"protocol", 0, OPC__SETTINGS_PROTOCOL, OPC__SETTINGS_AT(protocol), 0, 0},
    {"memory_store", 0, OPC__SETTINGS_FLAG, OPC__SETTINGS_AT(flags), 0, OPCOMMS_MEMORY_STORE},
    {"no_listen", 0, OPC__SETTINGS_FLAG, OPC__SETTINGS_AT(flags), 0, OPCOMMS_NO_LISTEN},
    {"no_resumption", 0, OPC__SETTINGS_FLAG, OPC__SETTINGS_AT(flags), 0, OPCOMMS_NO_RESUMPTION},
    {"tarpc_only", 0, OPC__SETTINGS_FLAG, OPC__SETTINGS_AT(flags), 0, OPCOMMS_TARPC_ONLY},
    {"native_only", 0, OPC__SETTINGS_FLAG, OPC__SETTINGS_AT(flags), 0, OPCOMMS_NATIVE_ONLY},
    {"encrypt_log", 0, OPC__SETTINGS_FLAG, OPC__SETTINGS_AT(flags), 0, OPCOMMS_ENCRYPT_LOG},
#define OPC__SETTINGS_N(field, min, max) \
    { #field, 0, OPC__SETTINGS_U32, OPC__SETTINGS_AT(field), min, max }
    OPC__SETTINGS_N(sync_interval_ms, 1, 3600000),
    OPC__SETTINGS_N(connections_max, 1, 1024),
    OPC__SETTINGS_N(connections_per_address, 1, UINT32_MAX),
    OPC__SETTINGS_N(handshakes_max, 1, UINT32_MAX),
    OPC__SETTINGS_N(handshakes_per_second, 1, UINT32_MAX),
    OPC__SETTINGS_N(handshake_timeout_ms, 1, UINT32_MAX),
    OPC__SETTINGS_N(idle_timeout_ms, 1, UINT32_MAX),
    OPC__SETTINGS_N(send_timeout_ms, 1, UINT32_MAX),
    OPC__SETTINGS_N(messages_max, 1, 0x1000000),
    OPC__SETTINGS_N(queue_depth_max, 1, UINT32_MAX),
    OPC__SETTINGS_N(mailboxes_max, 0, 0x80000),
    OPC__SETTINGS_N(frame_bytes_max, 1024, OPCOMMS_MAX_FRAME),
    OPC__SETTINGS_N(rate_per_second, 1, UINT32_MAX),
    OPC__SETTINGS_N(rate_cost, 1, UINT32_MAX),
    OPC__SETTINGS_N(queued_max, 1, 0x1000000),
    OPC__SETTINGS_N(queued_per_destination_max, 1, 0x1000000),
    OPC__SETTINGS_N(destinations_max, 1, 0x8000),
    OPC__SETTINGS_N(attempts_max, 0, 0xffff),
    OPC__SETTINGS_N(retry_min_ms, 1, 86400000),
    OPC__SETTINGS_N(retry_max_ms, 1, 86400000),
    OPC__SETTINGS_N(window_messages, 1, 0x1000000),
    OPC__SETTINGS_N(streams_max, 1, 0x1000000),
#undef OPC__SETTINGS_N
    {"rate_capacity", 0, OPC__SETTINGS_RATE, OPC__SETTINGS_AT(rate_capacity), 1, 1000000000},
    {"log_bytes_max", 0, OPC__SETTINGS_U64, OPC__SETTINGS_AT(log_bytes_max), 1, UINT64_MAX},
    {"memory_bytes_max", 0, OPC__SETTINGS_U64, OPC__SETTINGS_AT(memory_bytes_max), 1, UINT64_MAX},
    {"queued_bytes_max", 0, OPC__SETTINGS_U64, OPC__SETTINGS_AT(queued_bytes_max), 1, UINT64_MAX},
    {"window_bytes", 0, OPC__SETTINGS_U64, OPC__SETTINGS_AT(window_bytes), 1, (uint64_t)1 << 40},
    {"message_bytes_max", 0, OPC__SETTINGS_U64, OPC__SETTINGS_AT(message_bytes_max), 1,
     OPCOMMS_MAX_FRAME},
    {"rate_limit_capacity", 1, OPC__SETTINGS_RATE, OPC__SETTINGS_AT(rate_capacity), 1, 1000000000},
    {"rate_limit_refill_rate", 1, OPC__SETTINGS_U32, OPC__SETTINGS_AT(rate_per_second), 1,
     UINT32_MAX},
    {"tokens_per_message", 1, OPC__SETTINGS_U32, OPC__SETTINGS_AT(rate_cost), 1, UINT32_MAX},
    {"max_msgs_per_tick_utilization", 2, OPC__SETTINGS_PART, OPC__SETTINGS_NO_USE, 0, 1},
    {"max_send_attempts", 2, OPC__SETTINGS_U32, OPC__SETTINGS_AT(attempts_max), 1, 0xffff},
    {"retry_min_delay_msecs", 2, OPC__SETTINGS_U32, OPC__SETTINGS_AT(retry_min_ms), 1, 86400000},
    {"retry_max_delay_msecs", 2, OPC__SETTINGS_U32, OPC__SETTINGS_AT(retry_max_ms), 1, 86400000},
    {"max_frame_size_kb", 3, OPC__SETTINGS_KB, OPC__SETTINGS_AT(frame_bytes_max), 1,
     OPCOMMS_MAX_FRAME / 1024u},
    {"max_queue_depth", 4, OPC__SETTINGS_U32, OPC__SETTINGS_AT(queue_depth_max), 1, UINT32_MAX}};

typedef struct opc__settings_reader {
    opcomms_settings *s;
    opc__yaml yaml;
    const char *dir; /* put in front of relative paths */
    size_t dir_len;
    uint32_t line;                /* to blame */
    const opc__settings_key *key; /* whose value comes next */
    uint32_t opening;             /* or of this group, counted from 1 */
    uint32_t group;               /* in which we are */
    uint32_t group_line[OPC__SETTINGS_GROUPS];
    const char *path[2];  /* of the lists that stand in a file: allow, routes */
    opc__yaml_fn list_on; /* of the list that stands here, while it is read */
    opc__list_reader list;
    opcomms_err rc; /* not the text's fault */
    char why[128];
} opc__settings_reader;

OPC__FN int opc__settings_is(const char *name, const char *text, size_t len) {
    return strlen(name) == len && memcmp(name, text, len) == 0;
}

/* "name: what". A name that the file made up is cut and cleaned, for it goes into logs. */
OPC__FN const char *opc__settings_no(opc__settings_reader *r, const char *name, size_t len,
                                     const char *what) {
    opc__text t;
    size_t i;
    opc__text_init(&t, r->why, sizeof r->why);
    for (i = 0; i < len && i < 32; i++) {
        opc__text_bytes(&t, name[i] > ' ' && name[i] <= '~' ? &name[i] : "?", 1);
    }
    if (i < len) opc__text_str(&t, "...");
    opc__text_str(&t, ": ");
    opc__text_str(&t, what);
    return r->why;
}

OPC__FN const char *opc__settings_bad(opc__settings_reader *r, const char *what) {
    OPCOMMS_ASSERT(r->key != NULL);
    return opc__settings_no(r, r->key->name, strlen(r->key->name), what);
}

/* 0, or the line that has set what the key sets, by this name or by the other. */
OPC__FN uint32_t opc__settings_line(const opcomms_settings *s, const opc__settings_key *k) {
    uint32_t i;
    for (i = 0; i < OPC__SETTINGS_KEYS; i++) {
        const opc__settings_key *x = &opc__settings_keys[i];
        if (s->line[i] == 0 || x->at != k->at) continue;
        if (k->kind != OPC__SETTINGS_FLAG || x->max == k->max) return s->line[i];
    }
    return 0;
}

OPC__FN const char *opc__settings_again(opc__settings_reader *r, const char *name,
                                        uint32_t line) {
    char what[64];
    opc__text t;
    opc__text_init(&t, what, sizeof what);
    opc__text_str(&t, "line ");
    opc__text_u64(&t, line);
    opc__text_str(&t, " has set this already");
    return opc__settings_no(r, name, strlen(name), what);
}

OPC__FN const char *opc__settings_on_key(opc__settings_reader *r, const char *text, size_t len) {
    uint32_t i;
    r->key = NULL;
    r->opening = 0;
    for (i = 0; i < OPC__SETTINGS_KEYS; i++) {
        const opc__settings_key *k = &opc__settings_keys[i];
        uint32_t line;
        if (k->group != r->group || !opc__settings_is(k->name, text, len)) continue;
        line = opc__settings_line(r->s, k);
        if (line != 0) return opc__settings_again(r, k->name, line);
        r->s->line[i] = r->line;
        r->key = k;
        return NULL;
    }
    for (i = 0; r->group == 0 && i < OPC__SETTINGS_GROUPS; i++) {
        if (!opc__settings_is(opc__settings_groups[i], text, len)) continue;
        if (r->group_line[i] != 0) {
            return opc__settings_again(r, opc__settings_groups[i], r->group_line[i]);
        }
        r->group_line[i] = r->line;
        r->opening = i + 1;
        return NULL;
    }
    return opc__settings_no(r, text, len, "there is no such key");
}

OPC__FN void opc__settings_put(opc__settings_reader *r, const void *value, size_t bytes) {
    OPCOMMS_ASSERT(r->key->at + bytes <= offsetof(struct opcomms_settings, mem));
    memcpy((uint8_t *)r->s + r->key->at, value, bytes);
}

OPC__FN void opc__settings_put32(opc__settings_reader *r, uint64_t v) {
    uint32_t v32 = (uint32_t)v;
    OPCOMMS_ASSERT(v <= UINT32_MAX);
    opc__settings_put(r, &v32, sizeof v32);
}

/* Decimal, without quotes or leading zeros: 010 is eight to some readers of YAML. */
OPC__FN const char *opc__settings_number(opc__settings_reader *r, const char *text, size_t len) {
    const opc__settings_key *k = r->key;
    uint64_t v = 0;
    char what[96];
    opc__text t;
    if (r->yaml.quoted || (len > 1 && text[0] == '0') || !opc__str_u64(text, len, k->max, &v) ||
        v < k->min) {
        opc__text_init(&t, what, sizeof what);
        opc__text_str(&t, "a whole number from ");
        opc__text_u64(&t, k->min);
        opc__text_str(&t, " to ");
        opc__text_u64(&t, k->max);
        opc__text_str(&t, " is expected");
        return opc__settings_bad(r, what);
    }
    if (k->kind == OPC__SETTINGS_U64) {
        opc__settings_put(r, &v, sizeof v);
    } else {
        opc__settings_put32(r, k->kind == OPC__SETTINGS_KB ? v * 1024u : v);
    }
    return NULL;
}

/* 0, 1, or digits with a point between them and a value that is not above 1. */
OPC__FN int opc__settings_is_part(const char *text, size_t len) {
    size_t i;
    if (len == 0 || (text[0] != '0' && text[0] != '1')) return 0;
    if (len == 1) return 1;
    if (len == 2 || text[1] != '.') return 0;
    for (i = 2; i < len; i++) {
        if (text[i] < '0' || text[i] > (text[0] == '1' ? '0' : '9')) return 0;
    }
    return 1;
}

/* Keeps a text, with `dir` in front of it when it is a relative path. */
OPC__FN const char *opc__settings_text(opc__settings_reader *r, const char *text, size_t len,
                                       int is_path, const char **out) {
    opcomms_settings *s = r->s;
    char dir[OPC__PATH_MAX];
    const char *name = NULL;
    opc__text t;
    OPCOMMS_ASSERT(s->text_len <= sizeof s->text - OPC__PATH_MAX);
    opc__text_init(&t, s->text + s->text_len, OPC__PATH_MAX);
    if (is_path && len > 0 && text[0] != '/' && r->dir_len > 0) {
        opc__text_bytes(&t, r->dir, r->dir_len);
        if (r->dir[r->dir_len - 1] != '/') opc__text_str(&t, "/");
    }
    opc__text_bytes(&t, text, len);
    if (len == 0 || memchr(text, 0, len) != NULL || t.cut ||
        (is_path && opc__plat_split(t.p, dir, sizeof dir, &name) != OPCOMMS_OK)) {
        return opc__settings_bad(r, "not a usable path");
    }
    s->text_len += t.len + 1;
    *out = t.p;
    return NULL;
}

OPC__FN const char *opc__settings_word(opc__settings_reader *r, const char *text, size_t len) {
    static const opcomms_durability durability[] = {
        OPCOMMS_DURABLE_ALWAYS, OPCOMMS_DURABLE_INTERVAL, OPCOMMS_DURABLE_NEVER};
    static const char *const names[] = {"always", "interval", "never"};
    uint32_t i;
    if (r->key->kind == OPC__SETTINGS_PROTOCOL) {
        int newer = opc__settings_is("newer", text, len);
        if (!newer && !opc__settings_is("v0.5.0", text, len)) {
            return opc__settings_bad(r, "v0.5.0 or newer is expected");
        }
        opc__settings_put32(r, newer ? OPCOMMS_PROTOCOL_NEWER : OPCOMMS_PROTOCOL_V050);
        return NULL;
    }
    for (i = 0; i < 3; i++) {
        if (!opc__settings_is(names[i], text, len)) continue;
        r->s->cfg.durability = durability[i];
        return NULL;
    }
    return opc__settings_bad(r, "always, interval or never is expected");
}

OPC__FN const char *opc__settings_flag(opc__settings_reader *r, const char *text, size_t len) {
    int on = opc__settings_is("true", text, len);
    if (r->yaml.quoted || (!on && !opc__settings_is("false", text, len))) {
        return opc__settings_bad(r, "true or false is expected");
    }
    if (on) r->s->cfg.flags |= (uint32_t)r->key->max;
    return NULL;
}

OPC__FN const char *opc__settings_value(opc__settings_reader *r, const char *text, size_t len) {
    const char *kept = NULL, *bad;
    opcomms_address a;
    switch (r->key->kind) {
    case OPC__SETTINGS_ADDRESS:
        if (opc__id_address_parse(text, len, &a) != OPCOMMS_OK) {
            return opc__settings_bad(r, "a numeric ip:port is expected");
        }
        bad = opc__settings_text(r, text, len, 0, &kept);
        if (bad == NULL) r->s->cfg.address = kept;
        return bad;
    case OPC__SETTINGS_PATH:
        bad = opc__settings_text(r, text, len, 1, &kept);
        if (bad == NULL) opc__settings_put(r, &kept, sizeof kept);
        return bad;
    case OPC__SETTINGS_ALLOW:
    case OPC__SETTINGS_ROUTES: /* loaded when the rest is known to be good */
        bad = opc__settings_text(r, text, len, !opc__settings_is("allow_all", text, len), &kept);
        if (bad == NULL) r->path[r->key->kind == OPC__SETTINGS_ROUTES] = kept;
        return bad;
    case OPC__SETTINGS_DURABILITY:
    case OPC__SETTINGS_PROTOCOL: return opc__settings_word(r, text, len);
    case OPC__SETTINGS_FLAG: return opc__settings_flag(r, text, len);
    case OPC__SETTINGS_PART:
        if (!r->yaml.quoted && opc__settings_is_part(text, len)) return NULL;
        return opc__settings_bad(r, "a number from 0 to 1 is expected");
    case OPC__SETTINGS_RATE:
        if (r->yaml.quoted || !opc__settings_is("unlimited", text, len)) break;
        opc__settings_put32(r, OPCOMMS_UNLIMITED);
        return NULL;
    default: break;
    }
    return opc__settings_number(r, text, len);
}

/* A fresh list for the config; it belongs to the settings. */
OPC__FN opcomms_err opc__settings_list(opcomms_settings *s, int routes, opc__list **out) {
    opcomms_allocator alloc;
    opcomms_err rc;
    alloc.alloc = s->mem.alloc;
    alloc.release = s->mem.release;
    alloc.user = s->mem.user;
    if (routes) {
        rc = opc__list_new(&alloc, sizeof(opcomms_routing_table), out);
        if (rc == OPCOMMS_OK) s->cfg.routes = (opcomms_routing_table *)(void *)*out;
    } else {
        rc = opc__list_new(&alloc, sizeof(opcomms_allow_list), out);
        if (rc == OPCOMMS_OK) s->cfg.allow = (opcomms_allow_list *)(void *)*out;
    }
    return rc;
}

/* The rules stand here: what comes until the group's end goes to the list's own reader. */
OPC__FN const char *opc__settings_list_open(opc__settings_reader *r) {
    int routes = r->key->kind == OPC__SETTINGS_ROUTES;
    opc__list *l = NULL;
    r->rc = opc__settings_list(r->s, routes, &l);
    if (r->rc != OPCOMMS_OK) return opc__settings_bad(r, opc__err_text(r->rc));
    OPCOMMS_ASSERT(r->list.rules.count == 0);
    r->list.mem = &l->mem;
    r->list_on = routes ? opc__route_event : opc__allow_event;
    return NULL;
}

OPC__FN const char *opc__settings_list_event(opc__settings_reader *r, int event, const char *text,
                                             size_t len) {
    const char *bad;
    if (event == OPC__YAML_END) { /* nobody else has the list yet */
        opc__list *l = r->key->kind == OPC__SETTINGS_ROUTES ? &r->s->cfg.routes->l
                                                            : &r->s->cfg.allow->l;
        l->now = r->list.rules;
        memset(&r->list, 0, sizeof r->list);
        r->list_on = NULL;
        return NULL;
    }
    bad = r->list_on(&r->list, event, text, len);
    if (bad == NULL) return NULL;
    r->rc = r->list.rc;
    return opc__settings_bad(r, bad);
}

OPC__FN const char *opc__settings_event(void *user, int event, const char *text, size_t len) {
    opc__settings_reader *r = (opc__settings_reader *)user;
    /* a missing value is noticed on a later line; it is its key that is to blame */
    if (event == OPC__YAML_KEY || event == OPC__YAML_SCALAR || event == OPC__YAML_ITEM) {
        r->line = r->yaml.line;
    }
    if (r->list_on != NULL) return opc__settings_list_event(r, event, text, len);
    if (event == OPC__YAML_KEY) return opc__settings_on_key(r, text, len);
    if (event == OPC__YAML_END) {
        r->group = 0;
        return NULL;
    }
    if (r->opening > 0) { /* nothing, or comments alone, is a group too */
        const char *name = opc__settings_groups[r->opening - 1];
        if (event != OPC__YAML_GROUP && event != OPC__YAML_NULL) {
            return opc__settings_no(r, name, strlen(name), "a group of keys is expected");
        }
        if (event == OPC__YAML_GROUP) r->group = r->opening;
        r->opening = 0;
        return NULL;
    }
    if (event == OPC__YAML_SCALAR) return opc__settings_value(r, text, len);
    if (event == OPC__YAML_GROUP && (r->key->kind == OPC__SETTINGS_ALLOW ||
                                     r->key->kind == OPC__SETTINGS_ROUTES)) {
        return opc__settings_list_open(r);
    }
    return opc__settings_bad(r, event == OPC__YAML_NULL ? "a value is missing"
                                                        : "one value is expected");
}

/* What one key alone cannot tell. NULL, or what is wrong in r->line. */
OPC__FN const char *opc__settings_check(opc__settings_reader *r) {
    const opcomms_config *cfg = &r->s->cfg;
    uint32_t both = OPCOMMS_TARPC_ONLY | OPCOMMS_NATIVE_ONLY;
    uint32_t capacity = cfg->rate_capacity != 0 ? cfg->rate_capacity : 10000u;
    uint32_t least = cfg->retry_min_ms != 0 ? cfg->retry_min_ms : 100u;
    uint32_t most = cfg->retry_max_ms != 0 ? cfg->retry_max_ms : 10000u;
    const char *what = NULL;
    uint16_t at[2] = {0, 0};
    uint32_t i;
    if (cfg->rate_cost > capacity) {
        what = "a request costs more tokens than there can be";
        at[0] = OPC__SETTINGS_AT(rate_cost);
        at[1] = OPC__SETTINGS_AT(rate_capacity);
    } else if (least > most) {
        what = "the shortest wait is above the longest";
        at[0] = OPC__SETTINGS_AT(retry_min_ms);
        at[1] = OPC__SETTINGS_AT(retry_max_ms);
    } else if ((cfg->flags & both) == both) {
        what = "tarpc_only and native_only exclude each other";
        at[0] = at[1] = OPC__SETTINGS_AT(flags);
    }
    if (what == NULL) return NULL;
    for (i = 0, r->line = 0; i < OPC__SETTINGS_KEYS; i++) { /* the later of the two */
        const opc__settings_key *k = &opc__settings_keys[i];
        if (r->s->line[i] <= r->line || (k->at != at[0] && k->at != at[1])) continue;
        if (k->kind == OPC__SETTINGS_FLAG && (k->max & both) == 0) continue; /* another flag */
        r->line = r->s->line[i];
        r->key = k;
    }
    return opc__settings_bad(r, what);
}

/* Loads a list from its file. A mistake there is reported with both lines: that of the settings
   that names the file, in err->line, and the one in the file, in the text. */
OPC__FN opcomms_err opc__settings_load_list(opc__settings_reader *r, int routes,
                                            opcomms_error *err) {
    const char *path = r->path[routes], *where;
    opc__list *l = NULL;
    opcomms_error inner;
    opc__text t;
    char what[160];
    uint32_t i = 0;
    opcomms_err rc;
    if (path == NULL) return OPCOMMS_OK;
    rc = opc__settings_list(r->s, routes, &l);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, NULL);
    if (opc__settings_is("allow_all", path, strlen(path))) {
        l->now.all = 1;
        return OPCOMMS_OK;
    }
    memset(&inner, 0, sizeof inner);
    rc = opc__list_load(l, routes ? opc__route_event : opc__allow_event, path, &inner);
    if (rc == OPCOMMS_OK) return rc;
    while (opc__settings_keys[i].kind != (routes ? OPC__SETTINGS_ROUTES : OPC__SETTINGS_ALLOW)) i++;
    opc__text_init(&t, what, sizeof what);
    opc__text_str(&t, opc__settings_keys[i].name);
    where = inner.line != 0 ? strstr(inner.text, ": line ") : NULL;
    if (where != NULL) {
        opc__text_str(&t, " file");
        opc__text_str(&t, where);
    } else {
        opc__text_str(&t, ": ");
        opc__text_str(&t, path);
    }
    (void)opc__err_line(err, rc, r->s->line[i], what);
    if (err != NULL) err->os_code = inner.os_code;
    return rc;
}

OPC__FN void opc__settings_destroy(opcomms_settings *s) {
    opc__mem mem = s->mem;
    if (s->cfg.allow != NULL) opc__list_release(&s->cfg.allow->l, sizeof *s->cfg.allow);
    if (s->cfg.routes != NULL) opc__list_release(&s->cfg.routes->l, sizeof *s->cfg.routes);
    opc__mem_free(&mem, s, sizeof *s);
}

OPC__FN opcomms_err opc__settings_read(opcomms_settings *s, const char *text, size_t len,
                                       const char *dir, size_t dir_len, opcomms_error *err) {
    opc__settings_reader *r = (opc__settings_reader *)opc__mem_alloc(&s->mem, sizeof *r);
    const char *bad;
    opcomms_err rc;
    if (r == NULL) return opc__err_set(err, OPCOMMS_E_NOMEM, 0, NULL);
    r->s = s;
    r->dir = dir;
    r->dir_len = dir_len;
    r->yaml.on = opc__settings_event;
    r->yaml.user = r;
    r->yaml.groups = 1;
    bad = opc__yaml_read(&r->yaml, text, len);
    if (bad == NULL) bad = opc__settings_check(r);
    if (bad != NULL) {
        rc = r->rc != OPCOMMS_OK ? r->rc : OPCOMMS_E_SYNTAX;
        (void)opc__err_line(err, rc, bad == r->why ? r->line : r->yaml.line, bad);
        if (r->list.mem != NULL) opc__rules_free(r->list.mem, &r->list.rules);
    } else {
        rc = opc__settings_load_list(r, 0, err);
        if (rc == OPCOMMS_OK) rc = opc__settings_load_list(r, 1, err);
    }
    opc__mem_free(&s->mem, r, sizeof *r);
    return rc;
}

/* The caller's allocator, or the heap; 0 when it is none. */
OPC__FN int opc__settings_mem(const opcomms_allocator *alloc, opc__mem *mem) {
    memset(mem, 0, sizeof *mem);
    mem->alloc = alloc != NULL ? alloc->alloc : opc__plat_malloc;
    mem->release = alloc != NULL ? alloc->release : opc__plat_free;
    mem->user = alloc != NULL ? alloc->user : NULL;
    return mem->alloc != NULL && mem->release != NULL;
}

OPC__FN opcomms_err opc__settings_new(opc__mem *mem, const char *text, size_t len, const char *dir,
                                      size_t dir_len, opcomms_settings **out, opcomms_error *err) {
    opcomms_settings *s = (opcomms_settings *)opc__mem_alloc(mem, sizeof *s);
    opcomms_err rc;
    if (s == NULL) return opc__err_set(err, OPCOMMS_E_NOMEM, 0, NULL);
    s->mem = *mem; /* from now on the settings count for themselves */
    mem->used -= sizeof *s;
    s->mem.used = sizeof *s;
    s->cfg.size = (uint32_t)sizeof s->cfg;
    rc = opc__settings_read(s, text, len, dir, dir_len, err);
    if (rc == OPCOMMS_OK) {
        *out = s;
    } else {
        opc__settings_destroy(s);
    }
    return rc;
}

/* How many bytes of the config a key sets. */
OPC__FN size_t opc__settings_bytes(const opc__settings_key *k) {
    switch (k->kind) {
    case OPC__SETTINGS_ADDRESS:
    case OPC__SETTINGS_PATH: return sizeof(const char *);
    case OPC__SETTINGS_ALLOW: return sizeof(opcomms_allow_list *);
    case OPC__SETTINGS_ROUTES: return sizeof(opcomms_routing_table *);
    case OPC__SETTINGS_DURABILITY: return sizeof(opcomms_durability);
    case OPC__SETTINGS_U64: return sizeof(uint64_t);
    default: return sizeof(uint32_t);
    }
}

/* >>limit ==== L3 ==== token buckets: how often, in all and per address */

typedef struct opc__bucket {
    uint64_t tokens_milli;
    uint64_t last_us;
} opc__bucket;

/* Takes `count` tokens of a bucket that holds at most `burst` and refills `per_second`; 0: there
   are not as many. */
OPC__FN int opc__bucket_take_some(opc__bucket *b, uint64_t now_us, uint32_t burst,
                                  uint32_t per_second, uint32_t count) {
    uint64_t full = (uint64_t)burst * 1000u;
    uint64_t passed = now_us > b->last_us ? now_us - b->last_us : 0, fresh;
    OPCOMMS_ASSERT(burst > 0);
    OPCOMMS_ASSERT(per_second > 0);
    if (passed > 3600000000u) {
        passed = 3600000000u;
        b->last_us = now_us - passed;
    }
    fresh = passed * per_second / 1000u;
    b->last_us += fresh * 1000u / per_second; /* what is too little for a token yet is not lost */
    b->tokens_milli += fresh;
    if (b->tokens_milli > full) b->tokens_milli = full;
    if (b->tokens_milli < (uint64_t)count * 1000u) return 0;
    b->tokens_milli -= (uint64_t)count * 1000u;
    return 1;
}

OPC__FN int opc__bucket_take(opc__bucket *b, uint64_t now_us, uint32_t burst, uint32_t per_second) {
    return opc__bucket_take_some(b, now_us, burst, per_second, 1);
}

#ifndef OPC__LIMIT_ADDRESSES
#define OPC__LIMIT_ADDRESSES 64u /* addresses remembered; the longest unused is forgotten first */
#endif

typedef struct opc__limit {
    opc__bucket all;
    struct {
        opcomms_address address;
        opc__bucket bucket;
    } by_address[OPC__LIMIT_ADDRESSES];
} opc__limit;

OPC__FN void opc__limit_init(opc__limit *l, uint64_t now_us, uint32_t per_second) {
    memset(l, 0, sizeof *l);
    l->all.last_us = now_us;
    l->all.tokens_milli = (uint64_t)per_second * 1000u;
}

/* One handshake from this address now? One address gets half of what all get together, so that a
   single busy stranger cannot use up the rate. An address that the allow list names is charged to
   its own bucket only, so that no number of strangers can use it up. */
OPC__FN int opc__limit_handshake(opc__limit *l, const opcomms_address *from, int named,
                                 uint64_t now_us, uint32_t per_second) {
    uint32_t half = per_second > 1 ? per_second / 2 : 1;
    size_t i, slot = 0;
    OPCOMMS_ASSERT(from != NULL);
    for (i = 0; i < OPC__LIMIT_ADDRESSES; i++) {
        if (l->by_address[i].address.family != 0 &&
            opc__id_ip_equal(&l->by_address[i].address, from)) {
            break;
        }
        if (l->by_address[i].bucket.last_us < l->by_address[slot].bucket.last_us) slot = i;
    }
    if (i == OPC__LIMIT_ADDRESSES) {
        i = slot;
        l->by_address[i].address = *from;
        l->by_address[i].bucket.last_us = now_us;
        l->by_address[i].bucket.tokens_milli = (uint64_t)half * 1000u;
    }
    if (!opc__bucket_take(&l->by_address[i].bucket, now_us, half, half)) return 0;
    return named || opc__bucket_take(&l->all, now_us, per_second, per_second);
}

#ifndef OPC__LIMIT_IDENTITIES
#define OPC__LIMIT_IDENTITIES 128u /* remembered; the longest unused is forgotten first */
#endif

/* How often an identity may ask, whatever number of connections it uses. */
typedef struct opc__rates {
    struct {
        uint8_t hash[32];
        int used;
        opc__bucket bucket;
    } by[OPC__LIMIT_IDENTITIES];
} opc__rates;

/* Takes `cost` tokens of this identity. *hint is where it was found last, 0 at first. */
OPC__FN int opc__rates_take(opc__rates *r, const uint8_t hash[32], uint32_t *hint, uint64_t now_us,
                            uint32_t burst, uint32_t per_second, uint32_t cost) {
    uint32_t i = *hint, k, slot = 0;
    OPCOMMS_ASSERT(i < OPC__LIMIT_IDENTITIES);
    OPCOMMS_ASSERT(cost <= burst);
    if (!r->by[i].used || memcmp(r->by[i].hash, hash, 32) != 0) {
        for (k = 0, i = OPC__LIMIT_IDENTITIES; k < OPC__LIMIT_IDENTITIES; k++) {
            if (r->by[k].used && memcmp(r->by[k].hash, hash, 32) == 0) i = k;
            if (r->by[slot].used && (!r->by[k].used ||
                                     r->by[k].bucket.last_us < r->by[slot].bucket.last_us)) {
                slot = k;
            }
        }
        if (i == OPC__LIMIT_IDENTITIES) {
            i = slot;
            memcpy(r->by[i].hash, hash, 32);
            r->by[i].used = 1;
            r->by[i].bucket.last_us = now_us;
            r->by[i].bucket.tokens_milli = (uint64_t)burst * 1000u;
        }
        *hint = i;
    }
    return opc__bucket_take_some(&r->by[i].bucket, now_us, burst, per_second, cost);
}

/* >>numbers ==== L3 ==== who sent which numbers: duplicates, and logs that were rolled back */

/* A stream is what one sender (a key and its mailbox) sends to one mailbox, of one kind. Its
   messages are named by epoch, which is one opening of the sender's log, and number.
   QUEUE  numbers rise, gaps are legal: what is not above the last one stored is a duplicate, and so
          is all of an earlier epoch.
   DIRECT any order within the 1 024 numbers up to the highest one of the newest epoch; what is
          older than that cannot be told.
   An epoch of counter 0 is of a store in memory: each is a stream of its own, never judged, and is
   forgotten, longest unused first, when there are too many streams. All others are kept.

   Rollback. Of each peer that has a log we keep the epochs it has announced: those of its last
   HELLO, and of earlier ones of the same opening. (Not of the last alone: after a crash messages
   can be pending again whose end was not on the disk yet, but only until its log is opened anew.)
   A HELLO shows that the peer's log is an older copy when it names an epoch up to the highest known
   one that we have not been told of, or when its current epoch is below that. It shows that our own
   log is an older copy when we are known by an epoch which is not among the newest 256 openings of
   our log, nor older than all 256. Nothing is exchanged then until the operator accepts: what is
   known of the peer's epochs and numbers is forgotten, and messages of epochs up to the highest
   known one are uncertain from then on: they may have come before. That our own log is one is
   remembered until then; the peer's may also be put right again.

   Notes, integers big-endian, all of them written anew by compaction.
   SEEN, what has come of one stream; counts beside the messages that are in the log themselves:
       0  sender 32        34  kind of stream 1, zero 1              40  epoch: counter 8, random 8
      32  from_id 1        36  dest length 2 (0: our own identity,   56  highest number 8
      33  dest_id 1            else 1 to 1 024), zero 2              64  DIRECT: bitmap 128
          then dest
          Bit b (value 1 << b) of byte k of the bitmap: the number which is 8 * k + b below the
          highest one has come.
   PEER, all that is known of one peer; replaces the one before:
       0  key 32                                               48  excused: counter 8, random 8
      32  forgotten 8: the peer's messages in this log up to   64  blamed: counter 8, random 8
          this number do not count, because it was accepted    80  count 2 (at most 251)
      40  uncertain up to this counter 8                       82  stopped 1, zero 5
                                                               88  count x (counter 8, random 8)
          `blamed` (zero: none) is the epoch the peer knows us by, which our log has never had;
          `excused` the one that was accepted last. Stopped (0 or 1): the peer has announced
          epochs that show an older copy of its log. Those it has announced before follow, of
          ascending counters from 1.
   OPENED, one opening of this log: counter 8, random 32, of which the first 8 are its epoch's. */

#define OPC__NUMBERS_WINDOW 1024u
#define OPC__NUMBERS_HISTORY 256u
#define OPC__NUMBERS_EPOCHS (OPC__NATIVE_EPOCHS + 1u)
#define OPC__NUMBERS_NONE 0xffffffffu
#define OPC__NUMBERS_PEERS 256u /* buckets of the table of peers */
#define OPC__NUMBERS_SEEN 64u
#define OPC__NUMBERS_PEER 88u
#define OPC__NUMBERS_OPENED 40u
OPC__STATIC_ASSERT(numbers_peer,
                   OPC__NUMBERS_PEER + 16u * OPC__NUMBERS_EPOCHS <= OPC__NOTE_MAX);
OPC__STATIC_ASSERT(numbers_seen,
                   OPC__NUMBERS_SEEN + OPC__NUMBERS_WINDOW / 8u + OPC__DEST_MAX <= OPC__NOTE_MAX);

enum {
    OPC__NUMBERS_NEW = 1,
    OPC__NUMBERS_DUPLICATE,
    OPC__NUMBERS_TOO_OLD, /* DIRECT: whether it has come cannot be told */
    OPC__NUMBERS_ROLLBACK /* another history of the sender's log */
};
enum { OPC__NUMBERS_THEIRS = 1, OPC__NUMBERS_OURS = 2 }; /* whose log is an older copy */

/* What names a stream. */
typedef struct opc__numbers_key {
    uint8_t sender[32];
    uint8_t from_id;
    uint8_t dest_id;
    uint8_t kind; /* OPC__STREAM_QUEUE or _DIRECT */
    uint32_t dest_len; /* 0: our own identity */
    const uint8_t *dest;
    opc__epoch epoch; /* counts only when its counter is 0 */
} opc__numbers_key;

typedef struct opc__numbers_stream {
    uint8_t sender[32];
    uint8_t from_id;
    uint8_t dest_id;
    uint8_t kind; /* 0: this place is free */
    uint32_t dest_len;
    uint8_t *dest;
    uint64_t random; /* of the volatile epoch, else 0 */
    opc__epoch epoch;
    uint64_t number; /* the highest; 0: none */
    uint64_t uncertain_to;
    uint64_t *bits; /* DIRECT: number n is bit n % 1 024 */
    uint32_t hash;
    uint32_t users;
    uint32_t next; /* in its bucket; or among the free */
    uint32_t idle_next; /* volatile and without users: longest unused first */
    uint32_t idle_prev;
} opc__numbers_stream;

typedef struct opc__numbers_peer {
    uint8_t key[32];
    opc__epoch *list; /* announced, ascending */
    uint32_t count;
    uint32_t next;
    opc__epoch excused;
    opc__epoch blamed;
    uint64_t uncertain_to;
    uint64_t forgotten;
    int theirs; /* its last HELLO showed that its log is an older copy */
    uint64_t since_us; /* the caller's: when the newest connection began that has said HELLO */
} opc__numbers_peer;

typedef struct opc__numbers {
    opc__mem *mem;
    uint64_t seed;
    uint64_t uid; /* highest number in our log of a message that counts here */
    char own_text[65];
    opc__numbers_stream *streams;
    uint32_t streams_cap;
    uint32_t streams_max;
    uint32_t streams_top; /* places that were ever in use */
    uint32_t streams_count;
    uint32_t streams_free;
    uint32_t *bucket;
    uint32_t buckets;
    uint32_t idle_first;
    uint32_t idle_last;
    opc__numbers_peer *peers;
    uint32_t peers_cap;
    uint32_t peers_max;
    uint32_t peers_count;
    uint32_t peer_bucket[OPC__NUMBERS_PEERS];
    uint32_t opened_first;
    uint32_t opened_count;
    uint8_t opened[OPC__NUMBERS_HISTORY][OPC__NUMBERS_OPENED];
} opc__numbers;

/* seed: random, so that nobody can choose streams that are slow to find. */
OPC__FN void opc__numbers_init(opc__numbers *n, opc__mem *mem, const uint8_t own_hash[32],
                               uint32_t streams_max, uint32_t peers_max, uint64_t seed) {
    uint32_t i;
    OPCOMMS_ASSERT(streams_max > 0);
    OPCOMMS_ASSERT(peers_max > 0);
    memset(n, 0, sizeof *n);
    n->mem = mem;
    n->seed = seed;
    n->streams_max = streams_max;
    n->peers_max = peers_max;
    n->streams_free = OPC__NUMBERS_NONE;
    n->idle_first = OPC__NUMBERS_NONE;
    n->idle_last = OPC__NUMBERS_NONE;
    opc__str_hash_write(own_hash, n->own_text);
    for (i = 0; i < OPC__NUMBERS_PEERS; i++) n->peer_bucket[i] = OPC__NUMBERS_NONE;
}

OPC__FN void opc__numbers_clear(opc__numbers *n, opc__numbers_stream *s) {
    opc__mem_free(n->mem, s->dest, s->dest_len);
    opc__mem_free(n->mem, s->bits, OPC__NUMBERS_WINDOW / 8u);
    memset(s, 0, sizeof *s);
}

OPC__FN void opc__numbers_free(opc__numbers *n) {
    uint32_t i;
    if (n->mem == NULL) return;
    for (i = 0; i < n->streams_top; i++) opc__numbers_clear(n, &n->streams[i]);
    for (i = 0; i < n->peers_count; i++) {
        opc__mem_free(n->mem, n->peers[i].list, n->peers[i].count * sizeof(opc__epoch));
    }
    opc__mem_free(n->mem, n->streams, n->streams_cap * sizeof *n->streams);
    opc__mem_free(n->mem, n->peers, n->peers_cap * sizeof *n->peers);
    opc__mem_free(n->mem, n->bucket, n->buckets * sizeof *n->bucket);
    memset(n, 0, sizeof *n);
}

/* ---- tables ---- */

OPC__FN opcomms_err opc__numbers_grow(opc__mem *mem, void **table, uint32_t *cap, size_t bytes) {
    uint32_t fresh_cap = *cap == 0 ? 16 : *cap * 2;
    void *fresh;
    if (*cap > OPC__NUMBERS_NONE / 4u) return OPCOMMS_E_LIMIT;
    fresh = opc__mem_array(mem, fresh_cap, bytes);
    if (fresh == NULL) return OPCOMMS_E_NOMEM;
    if (*cap > 0) memcpy(fresh, *table, *cap * bytes);
    opc__mem_free(mem, *table, *cap * bytes);
    *table = fresh;
    *cap = fresh_cap;
    return OPCOMMS_OK;
}

OPC__FN uint64_t opc__numbers_mix(uint64_t h, uint64_t v) {
    h = (h ^ v) * 0x9e3779b97f4a7c15u;
    return h ^ (h >> 29);
}

OPC__FN uint32_t opc__numbers_hash(const opc__numbers *n, const opc__numbers_key *k) {
    uint64_t h = n->seed;
    uint32_t i;
    for (i = 0; i < 32; i += 8) h = opc__numbers_mix(h, opc__buf_be64(k->sender + i));
    h = opc__numbers_mix(h, (uint64_t)k->from_id << 16 | (uint64_t)k->dest_id << 8 | k->kind);
    h = opc__numbers_mix(h, k->epoch.counter == 0 ? k->epoch.random : 0);
    for (i = 0; i + 8 <= k->dest_len; i += 8) h = opc__numbers_mix(h, opc__buf_be64(k->dest + i));
    for (; i < k->dest_len; i++) h = opc__numbers_mix(h, k->dest[i]);
    return (uint32_t)(opc__numbers_mix(h, k->dest_len) >> 32);
}

/* Failing is no harm: the chains are longer then. */
OPC__FN void opc__numbers_rehash(opc__numbers *n) {
    uint32_t buckets = n->buckets == 0 ? 64 : n->buckets * 2, i;
    uint32_t *fresh = (uint32_t *)opc__mem_array(n->mem, buckets, sizeof *fresh);
    if (fresh == NULL) return;
    for (i = 0; i < buckets; i++) fresh[i] = OPC__NUMBERS_NONE;
    for (i = 0; i < n->streams_top; i++) {
        opc__numbers_stream *s = &n->streams[i];
        if (s->kind == 0) continue;
        s->next = fresh[s->hash & (buckets - 1)];
        fresh[s->hash & (buckets - 1)] = i;
    }
    opc__mem_free(n->mem, n->bucket, n->buckets * sizeof *n->bucket);
    n->bucket = fresh;
    n->buckets = buckets;
}

OPC__FN uint32_t opc__numbers_find(const opc__numbers *n, const opc__numbers_key *k,
                                   uint32_t hash) {
    uint64_t random = k->epoch.counter == 0 ? k->epoch.random : 0;
    uint32_t i = n->buckets == 0 ? OPC__NUMBERS_NONE : n->bucket[hash & (n->buckets - 1)];
    for (; i != OPC__NUMBERS_NONE; i = n->streams[i].next) {
        const opc__numbers_stream *s = &n->streams[i];
        if (s->hash == hash && s->random == random && s->kind == k->kind &&
            s->from_id == k->from_id && s->dest_id == k->dest_id && s->dest_len == k->dest_len &&
            memcmp(s->sender, k->sender, 32) == 0 &&
            (k->dest_len == 0 || memcmp(s->dest, k->dest, k->dest_len) == 0)) {
            return i;
        }
    }
    return OPC__NUMBERS_NONE;
}

OPC__FN void opc__numbers_idle_out(opc__numbers *n, uint32_t i) {
    opc__numbers_stream *s = &n->streams[i];
    if (n->idle_first != i && s->idle_prev == OPC__NUMBERS_NONE) return; /* it is not in it */
    if (s->idle_prev != OPC__NUMBERS_NONE) n->streams[s->idle_prev].idle_next = s->idle_next;
    if (s->idle_next != OPC__NUMBERS_NONE) n->streams[s->idle_next].idle_prev = s->idle_prev;
    if (n->idle_first == i) n->idle_first = s->idle_next;
    if (n->idle_last == i) n->idle_last = s->idle_prev;
    s->idle_next = OPC__NUMBERS_NONE;
    s->idle_prev = OPC__NUMBERS_NONE;
}

OPC__FN void opc__numbers_idle_in(opc__numbers *n, uint32_t i) {
    opc__numbers_stream *s = &n->streams[i];
    OPCOMMS_ASSERT(s->users == 0);
    OPCOMMS_ASSERT(s->random != 0);
    opc__numbers_idle_out(n, i);
    s->idle_prev = n->idle_last;
    if (n->idle_last != OPC__NUMBERS_NONE) n->streams[n->idle_last].idle_next = i;
    if (n->idle_first == OPC__NUMBERS_NONE) n->idle_first = i;
    n->idle_last = i;
}

OPC__FN void opc__numbers_remove(opc__numbers *n, uint32_t i) {
    uint32_t *at = &n->bucket[n->streams[i].hash & (n->buckets - 1)];
    OPCOMMS_ASSERT(n->streams[i].users == 0);
    opc__numbers_idle_out(n, i);
    while (*at != i) at = &n->streams[*at].next;
    *at = n->streams[i].next;
    opc__numbers_clear(n, &n->streams[i]);
    n->streams[i].next = n->streams_free;
    n->streams_free = i;
    n->streams_count--;
}

OPC__FN uint32_t opc__numbers_peer_find(const opc__numbers *n, const uint8_t key[32]) {
    uint64_t h = opc__numbers_mix(n->seed, opc__buf_be64(key));
    uint32_t i = n->peer_bucket[h >> 32 & (OPC__NUMBERS_PEERS - 1)];
    while (i != OPC__NUMBERS_NONE && memcmp(n->peers[i].key, key, 32) != 0) i = n->peers[i].next;
    return i;
}

/* The peer's record; a fresh one, if there is none, of at most `max`. */
OPC__FN opcomms_err opc__numbers_peer_get(opc__numbers *n, const uint8_t key[32], uint32_t max,
                                          opc__numbers_peer **out) {
    uint64_t h = opc__numbers_mix(n->seed, opc__buf_be64(key));
    uint32_t *bucket = &n->peer_bucket[h >> 32 & (OPC__NUMBERS_PEERS - 1)];
    uint32_t i = opc__numbers_peer_find(n, key);
    if (i == OPC__NUMBERS_NONE) {
        if (n->peers_count >= max) return OPCOMMS_E_LIMIT;
        if (n->peers_count == n->peers_cap) {
            void *table = n->peers;
            opcomms_err rc = opc__numbers_grow(n->mem, &table, &n->peers_cap, sizeof *n->peers);
            if (rc != OPCOMMS_OK) return rc;
            n->peers = (opc__numbers_peer *)table;
        }
        i = n->peers_count++;
        memset(&n->peers[i], 0, sizeof n->peers[i]);
        memcpy(n->peers[i].key, key, 32);
        n->peers[i].next = *bucket;
        *bucket = i;
    }
    *out = &n->peers[i];
    return OPCOMMS_OK;
}

/* A place for one stream more. */
OPC__FN opcomms_err opc__numbers_place(opc__numbers *n, uint32_t max, uint32_t *out) {
    void *table = n->streams;
    opcomms_err rc;
    if (n->streams_count >= max) {
        if (n->idle_first == OPC__NUMBERS_NONE) return OPCOMMS_E_LIMIT;
        opc__numbers_remove(n, n->idle_first);
    }
    if (n->streams_free != OPC__NUMBERS_NONE) {
        *out = n->streams_free;
        n->streams_free = n->streams[*out].next;
        return OPCOMMS_OK;
    }
    if (n->streams_top == n->streams_cap) {
        rc = opc__numbers_grow(n->mem, &table, &n->streams_cap, sizeof *n->streams);
        if (rc != OPCOMMS_OK) return rc;
        n->streams = (opc__numbers_stream *)table;
    }
    *out = n->streams_top++;
    return OPCOMMS_OK;
}

/* The stream of this key; it is made, if there is none. */
OPC__FN opcomms_err opc__numbers_get(opc__numbers *n, const opc__numbers_key *key, uint32_t max,
                                     uint32_t *out) {
    opc__numbers_key k = *key;
    opc__numbers_stream *s, made;
    uint32_t hash, i, peer;
    opcomms_err rc;
    OPCOMMS_ASSERT(k.dest_len <= OPC__DEST_MAX);
    OPCOMMS_ASSERT(k.kind == OPC__STREAM_QUEUE || k.kind == OPC__STREAM_DIRECT);
    if (k.dest_len == 64 && memcmp(k.dest, n->own_text, 64) == 0) k.dest_len = 0;
    hash = opc__numbers_hash(n, &k);
    *out = opc__numbers_find(n, &k, hash);
    if (*out != OPC__NUMBERS_NONE) return OPCOMMS_OK;
    if (n->streams_count >= n->buckets) opc__numbers_rehash(n);
    if (n->buckets == 0) return OPCOMMS_E_NOMEM;
    memset(&made, 0, sizeof made);
    if (k.kind == OPC__STREAM_DIRECT) {
        made.bits = (uint64_t *)opc__mem_alloc(n->mem, OPC__NUMBERS_WINDOW / 8u);
        if (made.bits == NULL) return OPCOMMS_E_NOMEM;
    }
    if (k.dest_len > 0) {
        made.dest = (uint8_t *)opc__mem_alloc(n->mem, k.dest_len);
        if (made.dest != NULL) memcpy(made.dest, k.dest, k.dest_len);
        made.dest_len = k.dest_len;
    }
    rc = k.dest_len > 0 && made.dest == NULL ? OPCOMMS_E_NOMEM : opc__numbers_place(n, max, &i);
    if (rc != OPCOMMS_OK) {
        opc__numbers_clear(n, &made);
        return rc;
    }
    s = &n->streams[i];
    *s = made;
    memcpy(s->sender, k.sender, 32);
    s->from_id = k.from_id;
    s->dest_id = k.dest_id;
    s->kind = k.kind;
    s->random = k.epoch.counter == 0 ? k.epoch.random : 0;
    s->hash = hash;
    s->idle_next = OPC__NUMBERS_NONE;
    s->idle_prev = OPC__NUMBERS_NONE;
    peer = opc__numbers_peer_find(n, k.sender);
    if (peer != OPC__NUMBERS_NONE) s->uncertain_to = n->peers[peer].uncertain_to;
    s->next = n->bucket[hash & (n->buckets - 1)];
    n->bucket[hash & (n->buckets - 1)] = i;
    n->streams_count++;
    *out = i;
    return OPCOMMS_OK;
}

/* ---- numbers of a stream ---- */

/* The index stays valid until it was closed as often as opened. OPCOMMS_E_LIMIT: as many streams as
   may be have numbers to remember, or are open. */
OPC__FN opcomms_err opc__numbers_open(opc__numbers *n, const opc__numbers_key *key, uint32_t *out) {
    opcomms_err rc = opc__numbers_get(n, key, n->streams_max, out);
    if (rc != OPCOMMS_OK) return rc;
    opc__numbers_idle_out(n, *out);
    n->streams[*out].users++;
    return OPCOMMS_OK;
}

OPC__FN void opc__numbers_close(opc__numbers *n, uint32_t i) {
    opc__numbers_stream *s = &n->streams[i];
    OPCOMMS_ASSERT(i < n->streams_top);
    OPCOMMS_ASSERT(s->users > 0);
    if (--s->users > 0) return;
    if (s->number == 0) {
        opc__numbers_remove(n, i); /* nothing to remember */
    } else if (s->random != 0) {
        opc__numbers_idle_in(n, i);
    }
}

OPC__FN int opc__numbers_check(const opc__numbers *n, uint32_t i, const opc__epoch *epoch,
                               uint64_t number) {
    const opc__numbers_stream *s = &n->streams[i];
    OPCOMMS_ASSERT(i < n->streams_top);
    OPCOMMS_ASSERT(s->kind != 0);
    if (s->number == 0) return OPC__NUMBERS_NEW;
    if (epoch->counter > s->epoch.counter) return OPC__NUMBERS_NEW;
    if (epoch->counter < s->epoch.counter) {
        return s->kind == OPC__STREAM_QUEUE ? OPC__NUMBERS_DUPLICATE : OPC__NUMBERS_TOO_OLD;
    }
    if (epoch->random != s->epoch.random) return OPC__NUMBERS_ROLLBACK;
    if (number > s->number) return OPC__NUMBERS_NEW;
    if (s->kind == OPC__STREAM_QUEUE) return OPC__NUMBERS_DUPLICATE;
    if (s->number - number >= OPC__NUMBERS_WINDOW) return OPC__NUMBERS_TOO_OLD;
    number %= OPC__NUMBERS_WINDOW;
    return s->bits[number / 64u] >> number % 64u & 1u ? OPC__NUMBERS_DUPLICATE : OPC__NUMBERS_NEW;
}

/* Up to `number` of this epoch; one of an older epoch, or below the window, changes nothing. */
OPC__FN void opc__numbers_mark(opc__numbers_stream *s, const opc__epoch *epoch, uint64_t number) {
    uint64_t i;
    OPCOMMS_ASSERT(number > 0);
    if (s->number != 0 && epoch->counter < s->epoch.counter) return;
    if (s->number == 0 || !opc__epoch_equal(epoch, &s->epoch)) {
        s->epoch = *epoch;
        s->number = 0;
        if (s->bits != NULL) memset(s->bits, 0, OPC__NUMBERS_WINDOW / 8u);
    }
    if (s->kind == OPC__STREAM_DIRECT) {
        if (number > s->number && number - s->number >= OPC__NUMBERS_WINDOW) {
            memset(s->bits, 0, OPC__NUMBERS_WINDOW / 8u);
        } else if (number > s->number) {
            for (i = s->number + 1; i < number; i++) {
                s->bits[i % OPC__NUMBERS_WINDOW / 64u] &= ~((uint64_t)1 << i % 64u);
            }
        }
        if (number > s->number || s->number - number < OPC__NUMBERS_WINDOW) {
            s->bits[number % OPC__NUMBERS_WINDOW / 64u] |= (uint64_t)1 << number % 64u;
        }
    }
    if (number > s->number) s->number = number;
}

/* A message that was found to be new is in our log as `uid`. */
OPC__FN void opc__numbers_take(opc__numbers *n, uint32_t i, const opc__epoch *epoch,
                               uint64_t number, uint64_t uid) {
    OPCOMMS_ASSERT(i < n->streams_top);
    OPCOMMS_ASSERT(n->streams[i].kind != 0);
    opc__numbers_mark(&n->streams[i], epoch, number);
    if (uid > n->uid) n->uid = uid;
}

/* QUEUE: the highest number taken of this epoch, 0 when it is not the newest. DIRECT: 0, for there
   "all up to it" would not be true. */
OPC__FN uint64_t opc__numbers_seen(const opc__numbers *n, uint32_t i, const opc__epoch *epoch) {
    const opc__numbers_stream *s = &n->streams[i];
    OPCOMMS_ASSERT(i < n->streams_top);
    if (s->kind != OPC__STREAM_QUEUE || !opc__epoch_equal(epoch, &s->epoch)) return 0;
    return s->number;
}

/* May a message of this epoch have come before its sender's log was accepted? */
OPC__FN int opc__numbers_uncertain(const opc__numbers *n, uint32_t i, const opc__epoch *epoch) {
    OPCOMMS_ASSERT(i < n->streams_top);
    return epoch->counter != 0 && epoch->counter <= n->streams[i].uncertain_to;
}

/* Forgets the numbers of a peer's log; streams without users are gone then. */
OPC__FN void opc__numbers_forget(opc__numbers *n, const uint8_t key[32], uint64_t uncertain_to) {
    uint32_t i;
    for (i = 0; i < n->streams_top; i++) {
        opc__numbers_stream *s = &n->streams[i];
        if (s->kind == 0 || s->random != 0 || memcmp(s->sender, key, 32) != 0) continue;
        s->number = 0;
        s->uncertain_to = uncertain_to;
        if (s->users == 0) opc__numbers_remove(n, i);
    }
}

/* ---- judging a peer ---- */

OPC__FN const uint8_t *opc__numbers_opened(const opc__numbers *n, uint32_t i) {
    OPCOMMS_ASSERT(i < n->opened_count);
    return n->opened[(n->opened_first + i) % OPC__NUMBERS_HISTORY];
}

/* Was this an opening of our log? */
OPC__FN int opc__numbers_was(const opc__numbers *n, const opc__epoch *e) {
    opc__epoch one;
    uint32_t i;
    for (i = n->opened_count; i > 0; i--) {
        opc__native_get_epoch(opc__numbers_opened(n, i - 1), &one);
        if (opc__epoch_equal(&one, e)) return 1;
    }
    return 0;
}

OPC__FN int opc__numbers_ours(const opc__numbers *n, const opc__numbers_peer *p,
                              const opc__epoch *known) {
    if (known->counter == 0 || n->opened_count == 0) return 0;
    if (opc__numbers_was(n, known)) return 0;
    if (p != NULL && opc__epoch_equal(known, &p->excused)) return 0;
    return n->opened_count < OPC__NUMBERS_HISTORY ||
           known->counter >= opc__buf_be64(opc__numbers_opened(n, 0));
}

/* Of what a HELLO announces: pending ones, and behind them the current one. */
OPC__FN const opc__epoch *opc__numbers_told(const opc__hello *h, uint32_t i) {
    return i < h->count ? &h->pending[i] : &h->now;
}

OPC__FN int opc__numbers_theirs(const opc__numbers_peer *p, const opc__hello *h) {
    uint64_t highest;
    uint32_t i, k = 0;
    if (h->now.counter == 0 || p == NULL || p->count == 0) return 0;
    highest = p->list[p->count - 1].counter;
    if (h->now.counter < highest) return 1;
    for (i = 0; i <= h->count; i++) {
        const opc__epoch *e = opc__numbers_told(h, i);
        if (e->counter > highest) break;
        while (p->list[k].counter < e->counter) k++;
        if (!opc__epoch_equal(&p->list[k], e)) return 1;
    }
    return 0;
}

/* The next of two ascending lists; those of one counter are the same. */
OPC__FN const opc__epoch *opc__numbers_merge(const opc__numbers_peer *p, const opc__hello *h,
                                             uint32_t *i, uint32_t *k) {
    const opc__epoch *a = *i < p->count ? &p->list[*i] : NULL;
    const opc__epoch *b = *k <= h->count ? opc__numbers_told(h, *k) : NULL;
    if (a == NULL || (b != NULL && b->counter < a->counter)) {
        if (b != NULL) ++*k;
        return b;
    }
    if (b != NULL && b->counter == a->counter) ++*k;
    ++*i;
    return a;
}

OPC__FN opcomms_err opc__numbers_record(opc__numbers *n, opc__numbers_peer *p, const opc__hello *h,
                                        int *changed) {
    int fresh = p->count == 0 || h->now.counter > p->list[p->count - 1].counter;
    uint32_t start = fresh ? p->count : 0, i, k, total, skip, at;
    const opc__epoch *e;
    opc__epoch *list;
    for (i = start, k = 0, total = 0; opc__numbers_merge(p, h, &i, &k) != NULL;) total++;
    if (!fresh && total == p->count) return OPCOMMS_OK;
    skip = total > OPC__NUMBERS_EPOCHS ? total - OPC__NUMBERS_EPOCHS : 0;
    list = (opc__epoch *)opc__mem_array(n->mem, total - skip, sizeof *list);
    if (list == NULL) return OPCOMMS_E_NOMEM;
    for (i = start, k = 0, at = 0; (e = opc__numbers_merge(p, h, &i, &k)) != NULL; at++) {
        if (at >= skip) list[at - skip] = *e;
    }
    OPCOMMS_ASSERT(at == total);
    opc__mem_free(n->mem, p->list, p->count * sizeof *list);
    p->list = list;
    p->count = total - skip;
    *changed = 1;
    return OPCOMMS_OK;
}

/* May anything be exchanged with this peer, which has said h? OPCOMMS_E_ROLLBACK: no, *whose log is
   an older copy (OPC__NUMBERS_THEIRS, _OURS or both). In both cases *changed: what is known of it
   has to be written, see opc__numbers_peer_note, before any message of it. Of h all is as
   opc__native_hello_read leaves it. Other errors: out of memory, or too many peers. */
OPC__FN opcomms_err opc__numbers_judge(opc__numbers *n, const uint8_t key[32], const opc__hello *h,
                                       int *changed, int *whose) {
    uint32_t i = opc__numbers_peer_find(n, key);
    opc__numbers_peer *p = i == OPC__NUMBERS_NONE ? NULL : &n->peers[i];
    int theirs = opc__numbers_theirs(p, h), ours = opc__numbers_ours(n, p, &h->known);
    opcomms_err rc;
    *changed = 0;
    *whose = 0;
    if (p == NULL && !theirs && !ours && h->now.counter == 0) return OPCOMMS_OK;
    rc = opc__numbers_peer_get(n, key, n->peers_max, &p);
    if (rc != OPCOMMS_OK) return rc;
    if (h->now.counter != 0 && p->theirs != theirs) { /* to be accepted also after a restart */
        p->theirs = theirs;
        *changed = 1;
    }
    if (ours && !opc__epoch_equal(&p->blamed, &h->known)) {
        p->blamed = h->known;
        *changed = 1;
    }
    if (theirs) *whose |= OPC__NUMBERS_THEIRS;
    if (p->blamed.counter != 0) *whose |= OPC__NUMBERS_OURS;
    if (*whose != 0) return OPCOMMS_E_ROLLBACK;
    return h->now.counter == 0 ? OPCOMMS_OK : opc__numbers_record(n, p, h, changed);
}

/* As whom we know this peer, for our HELLO to it. */
OPC__FN void opc__numbers_known(const opc__numbers *n, const uint8_t key[32], opc__epoch *out) {
    uint32_t i = opc__numbers_peer_find(n, key);
    memset(out, 0, sizeof *out);
    if (i != OPC__NUMBERS_NONE && n->peers[i].count > 0) {
        *out = n->peers[i].list[n->peers[i].count - 1];
    }
}

/* Has this peer announced this epoch, or is it volatile? An OPEN with another one is a lie. */
OPC__FN int opc__numbers_announced(const opc__numbers *n, const uint8_t key[32],
                                   const opc__epoch *epoch) {
    uint32_t i = opc__numbers_peer_find(n, key), k;
    if (epoch->counter == 0) return 1;
    for (k = 0; i != OPC__NUMBERS_NONE && k < n->peers[i].count; k++) {
        if (opc__epoch_equal(&n->peers[i].list[k], epoch)) return 1;
    }
    return 0;
}

OPC__FN int opc__numbers_whose(const opc__numbers_peer *p) {
    return (p->theirs ? OPC__NUMBERS_THEIRS : 0) |
           (p->blamed.counter != 0 ? OPC__NUMBERS_OURS : 0);
}

/* The next peer that is stopped, from *at, which begins with 0; NULL: there is none. */
OPC__FN const uint8_t *opc__numbers_stopped(const opc__numbers *n, uint32_t *at, int *whose) {
    while (*at < n->peers_count) {
        const opc__numbers_peer *p = &n->peers[(*at)++];
        *whose = opc__numbers_whose(p);
        if (*whose != 0) return p->key;
    }
    return NULL;
}

/* The operator accepts what was found: the peer is known anew at its next HELLO. Its note has to be
   written. OPCOMMS_E_NOT_FOUND: it is not stopped. */
OPC__FN opcomms_err opc__numbers_accept(opc__numbers *n, const uint8_t key[32]) {
    uint32_t i = opc__numbers_peer_find(n, key);
    opc__numbers_peer *p;
    if (i == OPC__NUMBERS_NONE || opc__numbers_whose(&n->peers[i]) == 0) return OPCOMMS_E_NOT_FOUND;
    p = &n->peers[i];
    if (p->count > 0 && p->list[p->count - 1].counter > p->uncertain_to) {
        p->uncertain_to = p->list[p->count - 1].counter;
    }
    if (p->blamed.counter != 0) p->excused = p->blamed;
    memset(&p->blamed, 0, sizeof p->blamed);
    p->theirs = 0;
    if (n->uid > p->forgotten) p->forgotten = n->uid;
    opc__mem_free(n->mem, p->list, p->count * sizeof *p->list);
    p->list = NULL;
    p->count = 0;
    opc__numbers_forget(n, key, p->uncertain_to);
    return OPCOMMS_OK;
}

/* ---- notes ---- */

OPC__FN size_t opc__numbers_peer_write(const opc__numbers_peer *p, uint8_t out[OPC__NOTE_MAX]) {
    uint32_t i;
    OPCOMMS_ASSERT(p->count <= OPC__NUMBERS_EPOCHS);
    memset(out, 0, OPC__NUMBERS_PEER);
    memcpy(out, p->key, 32);
    opc__buf_put64(out + 32, p->forgotten);
    opc__buf_put64(out + 40, p->uncertain_to);
    opc__native_put_epoch(out + 48, &p->excused);
    opc__native_put_epoch(out + 64, &p->blamed);
    opc__buf_put16(out + 80, p->count);
    out[82] = p->theirs != 0;
    for (i = 0; i < p->count; i++) {
        opc__native_put_epoch(out + OPC__NUMBERS_PEER + (size_t)16 * i, &p->list[i]);
    }
    return OPC__NUMBERS_PEER + (size_t)16 * p->count;
}

/* The body of a peer's OPC__NOTE_PEER; 0: nothing is known of it. */
OPC__FN size_t opc__numbers_peer_note(const opc__numbers *n, const uint8_t key[32],
                                      uint8_t out[OPC__NOTE_MAX]) {
    uint32_t i = opc__numbers_peer_find(n, key);
    return i == OPC__NUMBERS_NONE ? 0 : opc__numbers_peer_write(&n->peers[i], out);
}

OPC__FN size_t opc__numbers_seen_write(const opc__numbers_stream *s, uint8_t out[OPC__NOTE_MAX]) {
    size_t len = OPC__NUMBERS_SEEN;
    uint64_t i, at;
    OPCOMMS_ASSERT(s->number > 0);
    memset(out, 0, OPC__NUMBERS_SEEN + OPC__NUMBERS_WINDOW / 8u);
    memcpy(out, s->sender, 32);
    out[32] = s->from_id;
    out[33] = s->dest_id;
    out[34] = s->kind;
    opc__buf_put16(out + 36, s->dest_len);
    opc__native_put_epoch(out + 40, &s->epoch);
    opc__buf_put64(out + 56, s->number);
    if (s->kind == OPC__STREAM_DIRECT) {
        for (i = 0; i < OPC__NUMBERS_WINDOW && i < s->number; i++) {
            at = (s->number - i) % OPC__NUMBERS_WINDOW;
            if (s->bits[at / 64u] >> at % 64u & 1u) out[len + i / 8u] |= (uint8_t)(1u << i % 8u);
        }
        len += OPC__NUMBERS_WINDOW / 8u;
    }
    if (s->dest_len > 0) memcpy(out + len, s->dest, s->dest_len);
    return len + s->dest_len;
}

typedef opcomms_err (*opc__numbers_emit)(void *user, unsigned type, const uint8_t *body, size_t n);

/* All there is to remember, for a log that begins anew. Ends with the first error of emit. */
OPC__FN opcomms_err opc__numbers_notes(const opc__numbers *n, opc__numbers_emit emit, void *user) {
    uint8_t body[OPC__NOTE_MAX];
    opcomms_err rc = OPCOMMS_OK;
    uint32_t i;
    for (i = 0; i < n->opened_count && rc == OPCOMMS_OK; i++) {
        rc = emit(user, OPC__NOTE_OPENED, opc__numbers_opened(n, i), OPC__NUMBERS_OPENED);
    }
    /* before SEEN: a peer that was accepted makes forget */
    for (i = 0; i < n->peers_count && rc == OPCOMMS_OK; i++) {
        size_t len = opc__numbers_peer_write(&n->peers[i], body);
        rc = emit(user, OPC__NOTE_PEER, body, len);
    }
    for (i = 0; i < n->streams_top && rc == OPCOMMS_OK; i++) {
        if (n->streams[i].kind == 0 || n->streams[i].number == 0) continue;
        rc = emit(user, OPC__NOTE_SEEN, body, opc__numbers_seen_write(&n->streams[i], body));
    }
    return rc;
}

/* ---- recovery ---- */

/* The stream of a message or note in the log. What the log remembers is not limited. */
OPC__FN opcomms_err opc__numbers_recover(opc__numbers *n, const opc__numbers_key *key,
                                         uint32_t *out) {
    int within = n->streams_count < n->streams_max || n->idle_first != OPC__NUMBERS_NONE;
    opcomms_err rc = opc__numbers_get(n, key, within ? n->streams_max : OPC__NUMBERS_NONE, out);
    if (rc == OPCOMMS_OK && n->streams[*out].random != 0 && n->streams[*out].users == 0) {
        opc__numbers_idle_in(n, *out);
    }
    return rc;
}

/* A received message that the log still has, in the order of the log. */
OPC__FN opcomms_err opc__numbers_recover_seen(opc__numbers *n, const opc__msg_meta *m) {
    opc__numbers_key k;
    uint32_t i, peer = opc__numbers_peer_find(n, m->from);
    opcomms_err rc;
    if (m->stream == OPC__STREAM_NONE) return OPCOMMS_OK;
    if ((m->stream != OPC__STREAM_QUEUE && m->stream != OPC__STREAM_DIRECT) || m->number == 0 ||
        (m->epoch.counter | m->epoch.random) == 0 || m->dest_len > OPC__DEST_MAX) {
        return OPCOMMS_E_LOG_DAMAGED;
    }
    if (m->uid > n->uid) n->uid = m->uid;
    if (peer != OPC__NUMBERS_NONE && m->uid <= n->peers[peer].forgotten) {
        return OPCOMMS_OK; /* behind its note, because compaction has copied it */
    }
    memcpy(k.sender, m->from, 32);
    k.from_id = m->from_id;
    k.dest_id = m->dest_id;
    k.kind = m->stream;
    k.dest = m->dest;
    k.dest_len = m->dest_len;
    k.epoch = m->epoch;
    rc = opc__numbers_recover(n, &k, &i);
    if (rc == OPCOMMS_OK) opc__numbers_mark(&n->streams[i], &m->epoch, m->number);
    return rc;
}

OPC__FN opcomms_err opc__numbers_recover_stream(opc__numbers *n, const uint8_t *p, size_t len) {
    opc__numbers_key k;
    uint64_t number, i;
    uint32_t at;
    size_t bits;
    opcomms_err rc;
    if (len < OPC__NUMBERS_SEEN) return OPCOMMS_E_LOG_DAMAGED;
    memcpy(k.sender, p, 32);
    k.from_id = p[32];
    k.dest_id = p[33];
    k.kind = p[34];
    k.dest_len = opc__buf_be16(p + 36);
    opc__native_get_epoch(p + 40, &k.epoch);
    number = opc__buf_be64(p + 56);
    bits = k.kind == OPC__STREAM_DIRECT ? OPC__NUMBERS_WINDOW / 8u : 0;
    if ((k.kind != OPC__STREAM_QUEUE && k.kind != OPC__STREAM_DIRECT) || p[35] != 0 ||
        opc__buf_be16(p + 38) != 0 || k.dest_len > OPC__DEST_MAX || number == 0 ||
        (k.epoch.counter | k.epoch.random) == 0 ||
        len != OPC__NUMBERS_SEEN + bits + k.dest_len) {
        return OPCOMMS_E_LOG_DAMAGED;
    }
    p += OPC__NUMBERS_SEEN;
    k.dest = p + bits;
    if (bits > 0 && (p[0] & 1u) == 0) return OPCOMMS_E_LOG_DAMAGED; /* the highest has come */
    for (i = number; bits > 0 && i < OPC__NUMBERS_WINDOW; i++) { /* there is no number 0 */
        if (p[i / 8u] >> i % 8u & 1u) return OPCOMMS_E_LOG_DAMAGED;
    }
    rc = opc__numbers_recover(n, &k, &at);
    if (rc != OPCOMMS_OK) return rc;
    for (i = bits * 8u; i > 1; i--) {
        if (p[(i - 1) / 8u] >> (i - 1) % 8u & 1u) {
            opc__numbers_mark(&n->streams[at], &k.epoch, number - (i - 1));
        }
    }
    opc__numbers_mark(&n->streams[at], &k.epoch, number);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__numbers_recover_peer(opc__numbers *n, const uint8_t *p, size_t len) {
    opc__numbers_peer *peer;
    opc__epoch *list = NULL, e;
    uint64_t last = 0, forgotten;
    uint32_t count, i;
    opcomms_err rc;
    if (len < OPC__NUMBERS_PEER) return OPCOMMS_E_LOG_DAMAGED;
    count = opc__buf_be16(p + 80);
    if (count > OPC__NUMBERS_EPOCHS || len != OPC__NUMBERS_PEER + (size_t)16 * count ||
        p[82] > 1 || p[83] != 0 || opc__buf_be32(p + 84) != 0 ||
        (opc__buf_be64(p + 48) == 0 && opc__buf_be64(p + 56) != 0) ||
        (opc__buf_be64(p + 64) == 0 && opc__buf_be64(p + 72) != 0)) {
        return OPCOMMS_E_LOG_DAMAGED;
    }
    for (i = 0; i < count; i++, last = e.counter) {
        opc__native_get_epoch(p + OPC__NUMBERS_PEER + (size_t)16 * i, &e);
        if (e.counter <= last) return OPCOMMS_E_LOG_DAMAGED;
    }
    rc = opc__numbers_peer_get(n, p, OPC__NUMBERS_NONE, &peer);
    if (rc != OPCOMMS_OK) return rc;
    if (count > 0) {
        list = (opc__epoch *)opc__mem_array(n->mem, count, sizeof *list);
        if (list == NULL) return OPCOMMS_E_NOMEM;
    }
    for (i = 0; i < count; i++) {
        opc__native_get_epoch(p + OPC__NUMBERS_PEER + (size_t)16 * i, &list[i]);
    }
    opc__mem_free(n->mem, peer->list, peer->count * sizeof *list);
    peer->list = list;
    peer->count = count;
    forgotten = opc__buf_be64(p + 32);
    peer->uncertain_to = opc__buf_be64(p + 40);
    if (forgotten > peer->forgotten) opc__numbers_forget(n, p, peer->uncertain_to);
    peer->forgotten = forgotten;
    opc__native_get_epoch(p + 48, &peer->excused);
    opc__native_get_epoch(p + 64, &peer->blamed);
    peer->theirs = p[82];
    return OPCOMMS_OK;
}

/* Of ascending counters but in a salvaged log, where those of the old one come behind its own. */
OPC__FN opcomms_err opc__numbers_recover_opened(opc__numbers *n, const uint8_t *p, size_t len) {
    opc__epoch e;
    uint32_t i, k;
    if (len != OPC__NUMBERS_OPENED) return OPCOMMS_E_LOG_DAMAGED;
    opc__native_get_epoch(p, &e);
    if (e.counter == 0) return OPCOMMS_E_LOG_DAMAGED;
    for (i = n->opened_count; i > 0; i--) { /* its place is behind number i - 1 */
        uint64_t before = opc__buf_be64(opc__numbers_opened(n, i - 1));
        if (before < e.counter) break;
        if (before == e.counter) {
            return opc__numbers_was(n, &e) ? OPCOMMS_OK : OPCOMMS_E_LOG_DAMAGED;
        }
    }
    if (n->opened_count < OPC__NUMBERS_HISTORY) {
        n->opened_count++;
    } else if (i == 0) {
        return OPCOMMS_OK; /* older than all that are remembered */
    } else {
        n->opened_first = (n->opened_first + 1) % OPC__NUMBERS_HISTORY;
        i--;
    }
    for (k = n->opened_count - 1; k > i; k--) {
        memcpy(n->opened[(n->opened_first + k) % OPC__NUMBERS_HISTORY],
               n->opened[(n->opened_first + k - 1) % OPC__NUMBERS_HISTORY], OPC__NUMBERS_OPENED);
    }
    memcpy(n->opened[(n->opened_first + i) % OPC__NUMBERS_HISTORY], p, OPC__NUMBERS_OPENED);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__numbers_recover_note(opc__numbers *n, unsigned type, const uint8_t *body,
                                              size_t len) {
    if (type == OPC__NOTE_SEEN) return opc__numbers_recover_stream(n, body, len);
    if (type == OPC__NOTE_PEER) return opc__numbers_recover_peer(n, body, len);
    if (type == OPC__NOTE_OPENED) return opc__numbers_recover_opened(n, body, len);
    return OPCOMMS_OK;
}

/* >>conn ==== L3 ==== one connection: frames and requests over TLS; no socket, no clock */

#define OPC__CONN_REPLIES 16u      /* answers owed at once; reading stops when all are taken */
#define OPC__CONN_FEED 1024u       /* bytes of a frame parsed between two looks at the room */
#define OPC__CONN_ROOM 40960u      /* store room needed to go on reading a frame */

struct opc__conn;

/* An answer owed to the peer, sent once `position` of the store is visible. */
typedef struct opc__reply {
    uint64_t id;
    uint64_t position;
    uint8_t kind; /* OPC__RES_SEND.. */
    uint8_t flag;
    uint8_t cancelled;
    uint8_t call;      /* of OPC__RES_ERROR */
    const char *error; /* of OPC__RES_ERROR: the variant as JSON, static */
    uint64_t ref;      /* of a Get with a message: */
    uint64_t uid;
    uint64_t bytes;
    uint64_t wire_bytes;
    uint8_t from[32];
    uint8_t from_id;
    uint8_t mode; /* OPC__RENDER_* */
} opc__reply;

/* A request of ours. Belongs to the thread that waits; linked while the connection has it. */
typedef struct opc__call {
    struct opc__call *next;
    int kind; /* OPC__REQ_SEND.. OPC__REQ_PING */
    uint64_t id;
    uint64_t deadline_us; /* on the caller's clock */
    uint64_t span_id;
    const uint8_t *data;
    size_t len;
    uint64_t wire_bytes;
    char dest[65];
    uint8_t dest_id; /* of Get and Ack: our own mailbox there */
    uint8_t from_id;
    uint8_t mode;  /* OPC__RENDER_* of a Send */
    uint64_t uid;  /* of an Ack; of a message fetched */
    int found;     /* Get: there was a message */
    char from[129];
    uint8_t got_from_id;
    opc__fetch fetch;
    int written; /* its last byte has left: from now on the outcome can be unknown */
    int done;
    opcomms_err result;
    opcomms_error detail;
    int stored; /* the payload is not at `data` but in the store, at ref */
    uint64_t ref;
    /* native */
    uint8_t server[32];
    opcomms_address to; /* family 0: any connection with that key */
    uint64_t number;
    uint32_t channel;
    int tarpc; /* that peer speaks tarpc: to be sent over a link */
    int again; /* its connection broke once */
    opc__cond *wake;
} opc__call;

/* Takes a call out of a list; 0: it is not in it. */
OPC__FN int opc__call_unlink(opc__call **list, const opc__call *call) {
    while (*list != NULL && *list != call) list = &(*list)->next;
    if (*list == NULL) return 0;
    *list = call->next;
    return 1;
}

/* What a server connection asks of its owner. */
typedef struct opc__conn_ops {
    /* Carries out a complete request and fills the answer. A Send takes the connection's put
       (c->put, always open) when it stores it, by setting c->put_open to 0. */
    opcomms_err (*request)(void *user, struct opc__conn *c, const opc__request *r,
                           opc__reply *reply);
    uint64_t (*visible)(void *user); /* store position up to which answers may go out */
} opc__conn_ops;

typedef enum opc__conn_state {
    OPC__CONN_HANDSHAKE = 0,
    OPC__CONN_OPEN,
    OPC__CONN_ENDING, /* close_notify is on its way out */
    OPC__CONN_DEAD    /* nothing more to read or write; `error` says why */
} opc__conn_state;

typedef struct opc__conn {
    int server;
    opc__conn_state state;
    opcomms_err error;
    int tls_code;
    int input_ended;
    int output_lost; /* the peer has hung up; what it said before is still read */
    const opc__conn_ops *ops;
    void *user;
    /* Set by the owner when the native protocol may be agreed on: does the work of a step then. */
    opcomms_err (*native)(struct opc__conn *c, uint64_t now_us);
    int is_native;
    int busy;  /* native: answers are owed, or awaited */
    int newer; /* server: answers take the newer form of the protocol */
    int alone; /* client: nothing is written while an answer is outstanding */
    opc__store *store;
    uint32_t frame_max;
    opc__frame frame;
    int in_frame;
    union {
        opc__request_parser request;
        opc__response_parser response;
    } parse;
    /* the message being received */
    const opc__request *request; /* complete, being carried out */
    int put_open;
    opcomms_err put_error;
    uint32_t put;
    int put_mode; /* OPC__RENDER_* */
    uint64_t put_bytes;
    uint64_t put_wire;
    opc__bytes_in array;
    /* turning stored bytes back into the text they came as */
    int converting;
    uint32_t old_put;
    uint64_t old_bytes;
    uint64_t old_done;
    opc__render old_render;
    uint8_t hold[OPC__CONN_FEED + 64u];
    size_t hold_len;
    /* output */
    opc__reply reply[OPC__CONN_REPLIES];
    uint32_t reply_first;
    uint32_t reply_count;
    int out_stage;
    uint8_t out[768];
    size_t out_at;
    size_t out_len;
    opc__render render;
    uint64_t out_payload; /* bytes of payload taken so far */
    uint8_t src[512];
    size_t src_at;
    size_t src_len;
    /* client */
    opc__call *calls;   /* to be written, first is being written when out_stage != 0 */
    opc__call *waiting; /* written, answer outstanding */
    uint64_t next_id;
    uint64_t answers;
    int fed;         /* the frame under way has put pieces into the Get of fed_id */
    uint64_t fed_id;
    int more;          /* another step is due, although no byte moves */
    uint64_t activity; /* counts application progress, for idle time-outs */
    uint64_t heard;    /* counts receptions */
    opc__tls tls;
} opc__conn;

enum { OPC__OUT_IDLE = 0, OPC__OUT_HEAD, OPC__OUT_PAYLOAD, OPC__OUT_TAIL };

OPC__FN void opc__conn_init(opc__conn *c, int server, opc__store *store, uint32_t frame_max,
                            const opc__conn_ops *ops, void *user) {
    OPCOMMS_ASSERT(!server || store != NULL);
    OPCOMMS_ASSERT(!server || ops != NULL);
    memset(c, 0, offsetof(opc__conn, tls)); /* tls is set up by its own start function */
    c->server = server;
    c->store = store;
    c->frame_max = frame_max;
    c->ops = ops;
    c->user = user;
    opc__frame_reset(&c->frame);
}

OPC__FN void opc__conn_drop_put(opc__conn *c) {
    if (c->put_open) c->store->c->abort(c->store, c->put);
    if (c->converting) c->store->c->abort(c->store, c->old_put);
    c->put_open = 0;
    c->converting = 0;
    c->hold_len = 0;
    c->put_error = OPCOMMS_OK;
}

/* The connection is over; calls still attached are the owner's to finish. */
OPC__FN void opc__conn_kill(opc__conn *c, opcomms_err why) {
    if (c->state == OPC__CONN_DEAD) return;
    if (c->server) opc__conn_drop_put(c);
    c->error = why;
    c->state = OPC__CONN_DEAD;
}

/* Releases what the connection holds and wipes its keys. */
OPC__FN void opc__conn_wipe(opc__conn *c) {
    opc__conn_kill(c, OPCOMMS_E_CLOSED);
    opc__tls_wipe(&c->tls);
}

/* ---- receiving a message: JSON text to stored bytes ---- */

OPC__FN opcomms_err opc__conn_put_text(opc__conn *c, const uint8_t *p, size_t n) {
    opcomms_err rc;
    if (n == 0) return OPCOMMS_OK;
    rc = c->store->c->data(c->store, c->put, p, n);
    if (rc != OPCOMMS_OK) return rc;
    c->put_bytes += n;
    c->put_wire += opc__render_size(OPC__RENDER_TEXT, p, n);
    return OPCOMMS_OK;
}

/* The text so far turned out not to be a canonical array: what was stored as bytes is copied into
   a new put as the text it was. The copy goes on in steps (opc__conn_convert) as room allows. */
OPC__FN opcomms_err opc__conn_convert_begin(opc__conn *c, const uint8_t *rest, size_t n) {
    uint8_t pending[8];
    size_t held = opc__bytes_in_pending(&c->array, pending);
    uint32_t fresh = 0;
    opcomms_err rc;
    OPCOMMS_ASSERT(!c->converting);
    OPCOMMS_ASSERT(held + n <= sizeof c->hold);
    if (held > 0) memcpy(c->hold, pending, held);
    if (n > 0) memcpy(c->hold + held, rest, n);
    c->hold_len = held + n;
    c->put_mode = OPC__RENDER_TEXT;
    if (c->put_bytes == 0) {
        rc = opc__conn_put_text(c, c->hold, c->hold_len);
        c->hold_len = 0;
        return rc;
    }
    rc = c->store->c->begin(c->store, &fresh);
    if (rc != OPCOMMS_OK) return rc;
    c->old_put = c->put;
    c->old_bytes = c->put_bytes;
    c->old_done = 0;
    c->put = fresh;
    c->put_bytes = 0;
    c->put_wire = 0;
    c->converting = 1;
    opc__render_init(&c->old_render, OPC__RENDER_BYTES);
    return OPCOMMS_OK;
}

/* One slice; OPCOMMS_E_AGAIN while there is more to do. */
OPC__FN opcomms_err opc__conn_convert(opc__conn *c) {
    uint8_t bytes[256], text[1280];
    unsigned round;
    OPCOMMS_ASSERT(c->converting);
    for (round = 0; round < 64; round++) {
        size_t got = 0, used = 0, put = 0;
        opcomms_err rc;
        if (c->old_done == c->old_bytes) {
            c->store->c->abort(c->store, c->old_put);
            c->converting = 0;
            rc = opc__conn_put_text(c, c->hold, c->hold_len);
            c->hold_len = 0;
            return rc;
        }
        if (c->store->c->room(c->store) < OPC__CONN_ROOM) return OPCOMMS_E_AGAIN;
        rc = c->store->c->peek(c->store, c->old_put, c->old_done, bytes, sizeof bytes, &got);
        if (rc == OPCOMMS_OK && got == 0) rc = OPCOMMS_E_LOG_DAMAGED;
        if (rc != OPCOMMS_OK) return rc;
        opc__render_feed(&c->old_render, bytes, got, &used, text, sizeof text, &put);
        OPCOMMS_ASSERT(used == got); /* 256 bytes are at most 1 025 characters */
        rc = opc__conn_put_text(c, text, put);
        if (rc != OPCOMMS_OK) return rc;
        c->old_done += got;
    }
    c->more = 1;
    return OPCOMMS_E_AGAIN;
}

OPC__FN opcomms_err opc__conn_take(opc__conn *c, const uint8_t *p, size_t n) {
    uint8_t bytes[OPC__CONN_FEED + 64u];
    size_t used, made = 0;
    opcomms_err rc;
    if (c->converting) { /* bytes that follow within the same piece of input */
        if (n > sizeof c->hold - c->hold_len) return OPCOMMS_E_LIMIT;
        memcpy(c->hold + c->hold_len, p, n);
        c->hold_len += n;
        return OPCOMMS_OK;
    }
    if (c->put_mode == OPC__RENDER_TEXT) return opc__conn_put_text(c, p, n);
    used = opc__bytes_in_feed(&c->array, p, n, bytes, &made);
    OPCOMMS_ASSERT(made <= n);
    OPCOMMS_ASSERT(made <= sizeof bytes);
    if (made > 0) {
        rc = c->store->c->data(c->store, c->put, bytes, made);
        if (rc != OPCOMMS_OK) return rc;
        c->put_bytes += made;
        c->put_wire += opc__render_size(OPC__RENDER_BYTES, bytes, made);
    }
    if (c->array.broken) return opc__conn_convert_begin(c, p + used, n - used);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__conn_put_begin(opc__conn *c) {
    opcomms_err rc = c->store->c->begin(c->store, &c->put);
    if (rc != OPCOMMS_OK) return rc;
    c->put_open = 1;
    c->put_mode = OPC__RENDER_BYTES;
    c->put_bytes = 0;
    c->put_wire = 0;
    opc__bytes_in_init(&c->array);
    return OPCOMMS_OK;
}

/* Pieces of "msg" from the parser. A store that fails is remembered, and the rest of the frame is
   read and thrown away: the sender gets an error as its answer, and the connection stays. */
OPC__FN opcomms_err opc__conn_on_msg(void *user, const uint8_t *p, size_t n) {
    opc__conn *c = (opc__conn *)user;
    if (c->put_error != OPCOMMS_OK) return OPCOMMS_OK;
    while (n > 0) {
        size_t some = n < OPC__CONN_FEED ? n : OPC__CONN_FEED;
        opcomms_err rc = c->put_open ? OPCOMMS_OK : opc__conn_put_begin(c);
        if (rc == OPCOMMS_OK) rc = opc__conn_take(c, p, some);
        if (rc != OPCOMMS_OK) {
            opc__conn_drop_put(c);
            c->put_error = rc;
            return OPCOMMS_OK;
        }
        p += some;
        n -= some;
    }
    return OPCOMMS_OK;
}

/* The text has ended: settles whether it was a byte array. May start a conversion. */
OPC__FN opcomms_err opc__conn_put_end(opc__conn *c) {
    if (!c->put_open) {
        opcomms_err rc = opc__conn_put_begin(c);
        if (rc != OPCOMMS_OK) return rc;
    }
    if (c->put_mode == OPC__RENDER_BYTES && !opc__bytes_in_done(&c->array)) {
        return opc__conn_convert_begin(c, NULL, 0);
    }
    return OPCOMMS_OK;
}

/* ---- server: a complete request ---- */

OPC__FN opc__reply *opc__conn_reply_find(opc__conn *c, uint64_t id) {
    uint32_t i;
    for (i = 0; i < c->reply_count; i++) {
        opc__reply *r = &c->reply[(c->reply_first + i) % OPC__CONN_REPLIES];
        if (r->id == id) return r;
    }
    return NULL;
}

OPC__FN opcomms_err opc__conn_request(opc__conn *c, const opc__request *r) {
    opc__reply *reply = opc__conn_reply_find(c, r->id);
    opcomms_err rc;
    OPCOMMS_ASSERT(c->reply_count < OPC__CONN_REPLIES);
    c->activity++;
    if (r->kind == OPC__REQ_CANCEL) { /* an answer under way is left alone */
        if (reply != NULL && !(c->out_stage != OPC__OUT_IDLE &&
                               reply == &c->reply[c->reply_first])) {
            reply->cancelled = 1;
        }
        return OPCOMMS_OK;
    }
    if (reply != NULL) return OPCOMMS_OK; /* same id in flight: ignored, as the reference does */
    reply = &c->reply[(c->reply_first + c->reply_count) % OPC__CONN_REPLIES];
    memset(reply, 0, sizeof *reply);
    reply->id = r->id;
    rc = c->ops->request(c->user, c, r, reply);
    if (rc == OPCOMMS_OK) c->reply_count++;
    return rc;
}

/* ---- client: a complete response ---- */

OPC__FN opc__call **opc__conn_waiting(opc__conn *c, uint64_t id) {
    opc__call **link = &c->waiting;
    while (*link != NULL && (*link)->id != id) link = &(*link)->next;
    return link;
}

/* Pieces of a fetched message. They belong to the request whose number came before them in the
   frame; where it comes behind them, to the only Get there is, which starts again if they turn out
   to be another's. */
OPC__FN opcomms_err opc__conn_on_fetched(void *user, const uint8_t *p, size_t n) {
    opc__conn *c = (opc__conn *)user;
    const opc__walk *w = &c->parse.response.walk;
    opc__call *call = c->waiting;
    if (opc__walk_has(w, OPC__SLOT_ID)) {
        call = *opc__conn_waiting(c, w->value[OPC__SLOT_ID]);
    } else {
        while (call != NULL && call->kind != OPC__REQ_GET) call = call->next;
    }
    if (call == NULL || call->kind != OPC__REQ_GET) return OPCOMMS_OK; /* nobody waits for it */
    if (!c->fed) opc__fetch_init(&call->fetch, call->fetch.buf, call->fetch.cap);
    c->fed = 1;
    c->fed_id = call->id;
    opc__fetch_take(&call->fetch, p, n);
    return OPCOMMS_OK;
}

OPC__FN void opc__conn_fetched(opc__call *call, const opc__response *r) {
    call->found = r->flag;
    call->uid = r->uid;
    call->got_from_id = r->from_id;
    memcpy(call->from, r->from, r->from_len);
    call->from[r->from_len] = 0;
    opc__fetch_end(&call->fetch);
}

OPC__FN opcomms_err opc__conn_answer(opc__conn *c, const opc__response *r) {
    opc__call **link = opc__conn_waiting(c, r->request_id);
    opc__call *call = *link;
    int wanted;
    opcomms_err rc = OPCOMMS_OK;
    if (c->fed && c->fed_id != r->request_id) { /* they were another's */
        opc__call *wrong = *opc__conn_waiting(c, c->fed_id);
        if (wrong != NULL) opc__fetch_init(&wrong->fetch, wrong->fetch.buf, wrong->fetch.cap);
    }
    if (call == NULL) return OPCOMMS_OK; /* late, second or foreign: ignored */
    wanted = OPC__RES_SEND + call->kind - OPC__REQ_SEND;
    if (r->kind == OPC__RES_SERVER_ERROR || (r->kind == OPC__RES_ERROR && r->call == wanted)) {
        (void)opc__err_set(&call->detail, OPCOMMS_E_REMOTE, 0, r->detail);
        rc = OPCOMMS_E_REMOTE;
    } else if (r->kind != wanted) {
        return OPCOMMS_E_PROTOCOL; /* an answer of another kind: the peer is confused */
    } else if (wanted == OPC__RES_SEND && !r->flag) {
        rc = opc__err_set(&call->detail, OPCOMMS_E_ROUTE, 0, "refused by the receiver");
    } else if (wanted == OPC__RES_ACK && !r->flag) {
        rc = opc__err_set(&call->detail, OPCOMMS_E_NOT_FOUND, 0, "no such message there");
    } else if (wanted == OPC__RES_GET && r->flag && r->from_cut) {
        return OPCOMMS_E_PROTOCOL; /* an identity is at most 128 bytes */
    } else if (wanted == OPC__RES_GET) {
        opc__conn_fetched(call, r);
    }
    *link = call->next;
    call->next = NULL;
    call->result = rc;
    call->done = 1;
    c->answers++;
    c->activity++;
    return OPCOMMS_OK;
}

/* ---- input ---- */

/* Goes on with a conversion, if there is one. A store that fails counts against the message. */
OPC__FN opcomms_err opc__conn_convert_more(opc__conn *c) {
    opcomms_err rc;
    if (!c->converting) return OPCOMMS_OK;
    rc = opc__conn_convert(c);
    if (rc == OPCOMMS_E_AGAIN || rc == OPCOMMS_OK) return rc;
    opc__conn_drop_put(c);
    c->put_error = rc;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__conn_frame_end(opc__conn *c) {
    opcomms_err rc;
    if (c->server) {
        const opc__request *r;
        rc = opc__conn_convert_more(c);
        if (rc != OPCOMMS_OK) return rc;
        if (c->request == NULL) rc = opc__request_end(&c->parse.request, &c->request);
        if (rc != OPCOMMS_OK) return rc;
        r = c->request;
        if (r->kind == OPC__REQ_SEND && c->put_error == OPCOMMS_OK) {
            rc = opc__conn_put_end(c);
            if (rc == OPCOMMS_OK && c->converting) return OPCOMMS_E_AGAIN;
            if (rc != OPCOMMS_OK) {
                opc__conn_drop_put(c);
                c->put_error = rc;
            }
        }
        rc = opc__conn_request(c, r);
        if (rc == OPCOMMS_E_AGAIN) return rc;
        opc__conn_drop_put(c);
        c->request = NULL;
    } else {
        const opc__response *r = NULL;
        rc = opc__response_end(&c->parse.response, &r);
        if (rc == OPCOMMS_OK) rc = opc__conn_answer(c, r);
    }
    if (rc != OPCOMMS_OK) return rc;
    c->in_frame = 0;
    opc__frame_reset(&c->frame);
    return OPCOMMS_OK;
}

OPC__FN int opc__conn_may_read(opc__conn *c) {
    if (!c->server) return 1;
    if (c->reply_count >= OPC__CONN_REPLIES) return 0;
    return c->store->c->room(c->store) >= OPC__CONN_ROOM;
}

/* Consumes some of what TLS has decrypted. OPCOMMS_E_AGAIN: it waits for room or an answer. */
OPC__FN opcomms_err opc__conn_consume(opc__conn *c, const uint8_t *p, size_t n, size_t *used) {
    opcomms_err rc;
    *used = 0;
    if (!c->in_frame) {
        rc = opc__frame_head(&c->frame, c->frame_max, p, n, used);
        if (rc != OPCOMMS_OK || !c->frame.open) return rc;
        c->in_frame = 1;
        if (c->server) {
            opc__request_begin(&c->parse.request, opc__conn_on_msg, c);
        } else {
            opc__response_begin(&c->parse.response, opc__conn_on_fetched, c);
            c->fed = 0;
        }
        return OPCOMMS_OK;
    }
    if (!opc__conn_may_read(c)) return OPCOMMS_E_AGAIN;
    rc = opc__conn_convert_more(c);
    if (rc != OPCOMMS_OK) return rc;
    if (c->frame.left > 0) {
        if (n > c->frame.left) n = c->frame.left;
        if (n > OPC__CONN_FEED) n = OPC__CONN_FEED;
        rc = c->server ? opc__request_feed(&c->parse.request, p, n)
                       : opc__response_feed(&c->parse.response, p, n);
        if (rc != OPCOMMS_OK) return rc;
        c->frame.left -= (uint32_t)n;
        *used = n;
    }
    return OPCOMMS_OK;
}

/* Reads and carries out what has arrived, until it is used up or must wait. */
OPC__FN opcomms_err opc__conn_input(opc__conn *c) {
    for (;;) {
        size_t len = 0, used = 0;
        const uint8_t *p;
        opcomms_err rc;
        if (c->in_frame && c->frame.left == 0) {
            if (!opc__conn_may_read(c)) return OPCOMMS_OK;
            rc = opc__conn_frame_end(c);
            if (rc == OPCOMMS_E_AGAIN) return OPCOMMS_OK;
            if (rc != OPCOMMS_OK) return rc;
            continue;
        }
        p = opc__tls_read(&c->tls, &len);
        if (p == NULL || len == 0) return OPCOMMS_OK;
        rc = opc__conn_consume(c, p, len, &used);
        opc__tls_read_done(&c->tls, used);
        if (rc == OPCOMMS_E_AGAIN) return OPCOMMS_OK;
        if (rc != OPCOMMS_OK) return rc;
    }
}

/* ---- output ---- */

OPC__FN void opc__conn_out_frame(opc__conn *c, size_t json, uint64_t payload, size_t tail) {
    uint64_t total = (uint64_t)json + payload + tail;
    OPCOMMS_ASSERT(json > 0);
    OPCOMMS_ASSERT(total <= UINT32_MAX);
    opc__buf_put32(c->out, (uint32_t)total);
    c->out_at = 0;
    c->out_len = json + 4;
    c->out_stage = OPC__OUT_HEAD;
    c->out_payload = 0;
    c->src_at = 0;
    c->src_len = 0;
}

/* Takes the first answer that is due; 0 when there is none. */
OPC__FN int opc__conn_next_reply(opc__conn *c) {
    uint8_t *out = c->out + 4;
    size_t cap = sizeof c->out - 4, n = 0;
    uint64_t payload = 0;
    size_t tail = 0;
    const opc__reply *r;
    while (c->reply_count > 0 && c->reply[c->reply_first].cancelled) {
        c->reply_first = (c->reply_first + 1) % OPC__CONN_REPLIES;
        c->reply_count--;
    }
    if (c->reply_count == 0) return 0;
    r = &c->reply[c->reply_first];
    if (r->position > c->ops->visible(c->user)) return 0;
    switch (r->kind) {
    case OPC__RES_SEND: n = opc__tarpc_reply_send(out, cap, r->id, r->flag); break;
    case OPC__RES_ACK: n = opc__tarpc_reply_ack(out, cap, r->id, r->flag); break;
    case OPC__RES_PING: n = opc__tarpc_reply_ping(out, cap, r->id, r->flag, c->newer); break;
    case OPC__RES_GET:
        if (r->flag) {
            char from[65];
            opc__str_hash_write(r->from, from);
            n = opc__tarpc_reply_get_head(out, cap, r->id, r->uid, (const uint8_t *)from, 64,
                                          r->from_id);
            payload = r->wire_bytes;
            tail = strlen(OPC__TARPC_GET_TAIL);
            opc__render_init(&c->render, r->mode);
        } else {
            n = opc__tarpc_reply_get_null(out, cap, r->id);
        }
        break;
    case OPC__RES_TOO_LARGE:
        n = opc__tarpc_reply_too_large(out, cap, r->id, r->bytes, r->wire_bytes);
        break;
    default: n = opc__tarpc_reply_error(out, cap, r->id, r->call, r->error); break;
    }
    opc__conn_out_frame(c, n, payload, tail);
    return 1;
}

OPC__FN int opc__conn_next_call(opc__conn *c, uint64_t now_us) {
    opc__call *call = c->calls;
    uint8_t *out = c->out + 4;
    size_t cap = sizeof c->out - 4, n;
    uint64_t left;
    if (call == NULL || (c->alone && c->waiting != NULL)) return 0;
    if (call->kind == OPC__REQ_GET) { /* one at a time, see opc__conn_on_fetched */
        const opc__call *other = c->waiting;
        while (other != NULL && other->kind != OPC__REQ_GET) other = other->next;
        if (other != NULL) return 0;
        opc__fetch_init(&call->fetch, call->fetch.buf, call->fetch.cap);
    }
    left = call->deadline_us > now_us ? call->deadline_us - now_us : 0;
    call->id = c->next_id++;
    if (call->kind == OPC__REQ_SEND) {
        n = opc__tarpc_send_head(out, cap, call->id, left, call->span_id, call->from_id,
                                 (const uint8_t *)call->dest, strlen(call->dest), call->dest_id);
        opc__render_init(&c->render, call->mode);
        opc__conn_out_frame(c, n, call->wire_bytes, strlen(OPC__TARPC_SEND_TAIL));
        return 1;
    }
    if (call->kind == OPC__REQ_GET) {
        n = opc__tarpc_get(out, cap, call->id, left, call->span_id, call->dest_id);
    } else if (call->kind == OPC__REQ_ACK) {
        n = opc__tarpc_ack(out, cap, call->id, left, call->span_id, call->dest_id, call->uid);
    } else {
        n = opc__tarpc_ping(out, cap, call->id, left, call->span_id);
    }
    opc__conn_out_frame(c, n, 0, 0);
    return 1;
}

OPC__FN uint64_t opc__conn_payload_bytes(const opc__conn *c) {
    return c->server ? c->reply[c->reply_first].bytes : (uint64_t)c->calls->len;
}

OPC__FN int opc__conn_has_payload(const opc__conn *c) {
    if (!c->server) return c->calls->kind == OPC__REQ_SEND;
    return c->reply[c->reply_first].kind == OPC__RES_GET && c->reply[c->reply_first].flag;
}

/* Renders payload into dst; *end is set when the last character is out. */
OPC__FN opcomms_err opc__conn_out_payload(opc__conn *c, uint8_t *dst, size_t cap, size_t *put,
                                          int *end) {
    uint64_t total = opc__conn_payload_bytes(c);
    *put = 0;
    *end = 0;
    for (;;) {
        size_t used = 0, made = 0;
        if (c->src_at == c->src_len && c->out_payload < total) {
            size_t got = 0;
            if (c->server) {
                const opc__reply *r = &c->reply[c->reply_first];
                opcomms_err rc = c->store->c->read(c->store, r->ref, c->out_payload, c->src,
                                                   sizeof c->src, &got);
                if (rc != OPCOMMS_OK) return rc;
            } else {
                uint64_t left = total - c->out_payload;
                got = left < sizeof c->src ? (size_t)left : sizeof c->src;
                if (c->calls->stored) {
                    opcomms_err rc = c->store->c->read(c->store, c->calls->ref, c->out_payload,
                                                       c->src, got, &got);
                    if (rc != OPCOMMS_OK) return rc;
                } else {
                    memcpy(c->src, c->calls->data + c->out_payload, got);
                }
            }
            if (got == 0 || got > total - c->out_payload) return OPCOMMS_E_LOG_DAMAGED;
            c->src_at = 0;
            c->src_len = got;
            c->out_payload += got;
        }
        if (c->src_at == c->src_len) { /* all is taken: the closing bracket */
            *end = opc__render_finish(&c->render, dst + *put, cap - *put, &made);
            *put += made;
            return OPCOMMS_OK;
        }
        opc__render_feed(&c->render, c->src + c->src_at, c->src_len - c->src_at, &used, dst + *put,
                         cap - *put, &made);
        c->src_at += used;
        *put += made;
        if (used == 0 && made == 0) return OPCOMMS_OK; /* dst is full */
    }
}

/* The frame is out. */
OPC__FN void opc__conn_out_done(opc__conn *c) {
    c->out_stage = OPC__OUT_IDLE;
    c->activity++;
    if (c->server) {
        c->reply_first = (c->reply_first + 1) % OPC__CONN_REPLIES;
        c->reply_count--;
    } else {
        opc__call *call = c->calls;
        opc__call **end = &c->waiting;
        c->calls = call->next;
        call->next = NULL;
        call->written = 1;
        while (*end != NULL) end = &(*end)->next;
        *end = call;
    }
}

OPC__FN opcomms_err opc__conn_out_stage(opc__conn *c, uint8_t *dst, size_t room, size_t *put) {
    int end = 0;
    opcomms_err rc;
    if (c->out_stage == OPC__OUT_PAYLOAD) {
        rc = opc__conn_out_payload(c, dst, room, put, &end);
        if (rc == OPCOMMS_OK && end) {
            const char *tail = c->server ? OPC__TARPC_GET_TAIL : OPC__TARPC_SEND_TAIL;
            c->out_len = strlen(tail);
            c->out_at = 0;
            memcpy(c->out, tail, c->out_len);
            c->out_stage = OPC__OUT_TAIL;
        }
        return rc;
    }
    *put = c->out_len - c->out_at < room ? c->out_len - c->out_at : room;
    memcpy(dst, c->out + c->out_at, *put);
    c->out_at += *put;
    if (c->out_at == c->out_len) {
        if (c->out_stage == OPC__OUT_HEAD && opc__conn_has_payload(c)) {
            c->out_stage = OPC__OUT_PAYLOAD;
        } else {
            opc__conn_out_done(c);
        }
    }
    return OPCOMMS_OK;
}

/* Writes what is due into TLS, as far as its buffer takes it. */
OPC__FN opcomms_err opc__conn_output(opc__conn *c, uint64_t now_us) {
    int wrote = 0;
    for (;;) {
        size_t room = 0, put = 0;
        uint8_t *dst = opc__tls_write(&c->tls, &room);
        opcomms_err rc;
        if (dst == NULL || room == 0) break;
        if (c->out_stage == OPC__OUT_IDLE) {
            int any = c->server ? opc__conn_next_reply(c) : opc__conn_next_call(c, now_us);
            if (!any) break;
        }
        rc = opc__conn_out_stage(c, dst, room, &put);
        if (rc != OPCOMMS_OK) return rc;
        opc__tls_write_done(&c->tls, put);
        wrote = 1;
    }
    if (wrote) opc__tls_flush(&c->tls);
    return OPCOMMS_OK;
}

/* One step after bytes have come or gone, or an answer became due: TLS state, input, output.
   The owner moves wire bytes before and after. */
OPC__FN void opc__conn_step(opc__conn *c, uint64_t now_us) {
    opcomms_err rc = OPCOMMS_OK;
    if (c->state == OPC__CONN_DEAD) return;
    c->more = 0;
    if (c->state == OPC__CONN_HANDSHAKE && opc__tls_ready(&c->tls)) {
        c->state = OPC__CONN_OPEN;
        c->is_native = c->native != NULL && opc__tls_native(&c->tls);
        c->activity++;
    }
    if (c->state == OPC__CONN_OPEN && c->is_native) {
        rc = c->native(c, now_us);
    } else if (c->state == OPC__CONN_OPEN) {
        rc = opc__conn_input(c);
        if (rc == OPCOMMS_OK) rc = opc__conn_output(c, now_us);
        if (rc == OPCOMMS_OK && c->server && c->reply_count < OPC__CONN_REPLIES) {
            uint32_t owed = c->reply_count;
            rc = opc__conn_input(c); /* answers that went out made room for more */
            if (c->reply_count > owed) c->more = 1; /* and nothing else would send these */
        }
    }
    if (rc != OPCOMMS_OK) {
        opc__conn_kill(c, rc);
        return;
    }
    if (opc__tls_closed(&c->tls)) {
        opcomms_err why = opc__tls_error(&c->tls, &c->tls_code);
        opc__conn_kill(c, why == OPCOMMS_OK ? OPCOMMS_E_CLOSED : why);
    }
}

/* The peer's bytes have ended (TCP end of file). What is owed is still sent. */
OPC__FN void opc__conn_ended(opc__conn *c) {
    c->input_ended = 1;
    if (c->state == OPC__CONN_HANDSHAKE) {
        opcomms_err why = opc__tls_error(&c->tls, &c->tls_code);
        opc__conn_kill(c, why == OPCOMMS_OK ? OPCOMMS_E_TLS : why);
    }
}

/* Nothing is owed to the peer any more. */
OPC__FN int opc__conn_quiet(const opc__conn *c) {
    return c->reply_count == 0 && c->out_stage == OPC__OUT_IDLE && c->calls == NULL &&
           c->waiting == NULL && !c->busy;
}

/* Begins the orderly end: close_notify. */
OPC__FN void opc__conn_end(opc__conn *c) {
    if (c->state == OPC__CONN_OPEN) {
        c->state = OPC__CONN_ENDING;
        if (c->server) opc__conn_drop_put(c);
        opc__tls_close(&c->tls);
    } else if (c->state == OPC__CONN_HANDSHAKE) {
        opc__conn_kill(c, OPCOMMS_E_CLOSED);
    }
}

/* >>items ==== L3 ==== every message a peer remembers: one table of places, found by number */

#define OPC__ITEMS_NONE 0xffffffffu
#define OPC__ITEMS_PIECE 256u /* elements added to a table at once */
#define OPC__ITEMS_BYTES_MAX 0x0fffffffu
#define OPC__ITEMS_BOX_MAX 0x000fffffu

/* One message that is not over: 56 bytes, and 4 for its share of the hash table. The payload and
   the rest of its description lie in the store. Its lists belong to >>mailbox and >>outbox. */
typedef struct opc__entry {
    uint64_t uid;      /* 0: free */
    uint64_t ref[2];   /* its place in the store: opc__items_ref; and the one to come */
    uint64_t position; /* visible once the store has got this far; for DEAD and with a term see
                          >>outbox */
    uint32_t bytes : 28; /* or OPC__ITEMS_BYTES_MAX: so many or more; the store knows */
    uint32_t out : 1;    /* IN: handed out to the program */
    uint32_t side : 1;   /* which ref was told last */
    uint32_t term : 1;   /* OUT: `position` is the index of its opc__term */
    uint32_t text : 1;   /* OUT: the payload is text */
    uint32_t box : 20; /* IN: of the mailbox; OUT: its destination; DEAD: the error, negated */
    uint32_t kind : 2; /* OPC__KIND_ */
    uint32_t level : 2; /* OUT: the acknowledgement asked for */
    uint32_t tried : 2; /* OUT, DEAD: OPC__TRIED_ */
    uint32_t native : 1; /* OUT: never by tarpc */
    uint32_t more : 5;
    uint32_t next; /* in its list, oldest first; or in the free list */
    uint32_t prev;
    uint32_t hash_next;
    uint32_t who; /* IN: the sender; OUT and DEAD: attempts so far << 16 | era */
} opc__entry;
OPC__STATIC_ASSERT(entry_size, sizeof(opc__entry) == 56);

/* A table that grows without moving what is in it, so that no call copies much. */
typedef struct opc__pieces {
    void **piece;
    uint32_t count;
    uint32_t cap;
    uint32_t bytes; /* of an element */
} opc__pieces;

typedef struct opc__items {
    opc__mem *mem;
    opc__pieces entries; /* opc__entry */
    opc__pieces buckets; /* uint32_t; as many as there are entries */
    uint32_t split;      /* buckets in use, see opc__items_bucket */
    uint32_t free;
    uint32_t free_count;
    uint32_t count;
    uint32_t moved; /* entries with a place to come */
    uint32_t side;  /* which ref counts now */
} opc__items;

/* Doubles a table; NULL: out of memory or at its limit, and nothing has changed. */
OPC__FN void *opc__items_grow(opc__mem *mem, void *old, uint32_t *cap, uint32_t max,
                              size_t bytes) {
    uint32_t fresh_cap = *cap == 0 ? 16 : (*cap > max / 2 ? max : *cap * 2);
    void *fresh;
    if (fresh_cap > max) fresh_cap = max;
    if (fresh_cap <= *cap) return NULL;
    fresh = opc__mem_array(mem, fresh_cap, bytes);
    if (fresh == NULL) return NULL;
    if (*cap > 0) memcpy(fresh, old, (size_t)*cap * bytes);
    opc__mem_free(mem, old, (size_t)*cap * bytes);
    *cap = fresh_cap;
    return fresh;
}

/* One piece more, zeroed; 0: out of memory. */
OPC__FN int opc__pieces_more(opc__pieces *t, opc__mem *mem) {
    void *p;
    if (t->count == t->cap) {
        p = opc__items_grow(mem, t->piece, &t->cap, OPC__ITEMS_NONE / OPC__ITEMS_PIECE,
                            sizeof *t->piece);
        if (p == NULL) return 0;
        t->piece = (void **)p;
    }
    p = opc__mem_array(mem, OPC__ITEMS_PIECE, t->bytes);
    if (p == NULL) return 0;
    t->piece[t->count++] = p;
    return 1;
}

OPC__FN void opc__pieces_free(opc__pieces *t, opc__mem *mem) {
    uint32_t i;
    for (i = 0; i < t->count; i++) {
        opc__mem_free(mem, t->piece[i], (size_t)OPC__ITEMS_PIECE * t->bytes);
    }
    opc__mem_free(mem, t->piece, (size_t)t->cap * sizeof *t->piece);
    t->piece = NULL;
    t->count = 0;
    t->cap = 0;
}

OPC__FN void *opc__pieces_at(const opc__pieces *t, uint32_t i) {
    OPCOMMS_ASSERT(i / OPC__ITEMS_PIECE < t->count);
    return (uint8_t *)t->piece[i / OPC__ITEMS_PIECE] + (size_t)(i % OPC__ITEMS_PIECE) * t->bytes;
}

OPC__FN void opc__items_init(opc__items *t, opc__mem *mem) {
    memset(t, 0, sizeof *t);
    t->mem = mem;
    t->entries.bytes = sizeof(opc__entry);
    t->buckets.bytes = sizeof(uint32_t);
    t->free = OPC__ITEMS_NONE;
}

OPC__FN void opc__items_free(opc__items *t) {
    if (t->mem == NULL) return;
    opc__pieces_free(&t->entries, t->mem);
    opc__pieces_free(&t->buckets, t->mem);
    memset(t, 0, sizeof *t);
}

/* Stays where it is until it is removed. */
OPC__FN opc__entry *opc__items_at(const opc__items *t, uint32_t i) {
    return (opc__entry *)opc__pieces_at(&t->entries, i);
}

OPC__FN uint64_t opc__items_ref(const opc__items *t, uint32_t i) {
    const opc__entry *e = opc__items_at(t, i);
    OPCOMMS_ASSERT(e->uid != 0);
    return e->ref[t->side];
}

/* Linear hashing (Litwin 1980): the table grows by one bucket at a time, each new one taking what
   is its own from one old one, so that no call rehashes everything. Numbers ascend one by one, and
   come and go in this order: those that follow each other lie side by side. */
OPC__FN uint32_t *opc__items_bucket(const opc__items *t, uint64_t uid, uint32_t split) {
    uint32_t h = (uint32_t)uid + (uint32_t)(((uid >> 10) * 0x9e3779b97f4a7c15u) >> 32);
    uint32_t mask = split - 1;
    OPCOMMS_ASSERT(split > 0);
    mask |= mask >> 1;
    mask |= mask >> 2;
    mask |= mask >> 4;
    mask |= mask >> 8;
    mask |= mask >> 16;
    h &= mask;
    if (h >= split) h &= mask >> 1;
    return (uint32_t *)opc__pieces_at(&t->buckets, h);
}

OPC__FN void opc__items_split(opc__items *t) {
    uint32_t to = t->split, from = to, *fresh, *old, i;
    while (from & (from - 1)) from &= from - 1; /* the highest bit of `to` */
    from = to - from;
    fresh = (uint32_t *)opc__pieces_at(&t->buckets, to);
    *fresh = OPC__ITEMS_NONE;
    t->split = to + 1;
    if (to == 0) return;
    old = (uint32_t *)opc__pieces_at(&t->buckets, from);
    i = *old;
    *old = OPC__ITEMS_NONE;
    while (i != OPC__ITEMS_NONE) {
        opc__entry *e = opc__items_at(t, i);
        uint32_t next = e->hash_next, *bucket = opc__items_bucket(t, e->uid, t->split);
        OPCOMMS_ASSERT(bucket == old || bucket == fresh);
        e->hash_next = *bucket;
        *bucket = i;
        i = next;
    }
}

/* Makes sure that n more can be added; OPCOMMS_E_NOMEM. */
OPC__FN opcomms_err opc__items_reserve(opc__items *t, uint32_t n) {
    while (t->free_count < n) {
        uint32_t first = t->buckets.count * OPC__ITEMS_PIECE, i;
        if (t->entries.count == t->buckets.count && !opc__pieces_more(&t->entries, t->mem)) {
            return OPCOMMS_E_NOMEM;
        }
        if (!opc__pieces_more(&t->buckets, t->mem)) return OPCOMMS_E_NOMEM;
        for (i = first + OPC__ITEMS_PIECE; i > first; i--) {
            opc__items_at(t, i - 1)->next = t->free;
            t->free = i - 1;
        }
        t->free_count += OPC__ITEMS_PIECE;
        for (i = 0; i < OPC__ITEMS_PIECE; i++) opc__items_split(t);
    }
    return OPCOMMS_OK;
}

/* The index of the message with this number, or OPC__ITEMS_NONE. */
OPC__FN uint32_t opc__items_find(const opc__items *t, uint64_t uid) {
    uint32_t i;
    if (t->split == 0 || uid == 0) return OPC__ITEMS_NONE;
    i = *opc__items_bucket(t, uid, t->split);
    while (i != OPC__ITEMS_NONE) {
        const opc__entry *e = opc__items_at(t, i);
        if (e->uid == uid) return i;
        i = e->hash_next;
    }
    return OPC__ITEMS_NONE;
}

/* After opc__items_reserve this cannot fail. The number is not in the table yet. */
OPC__FN uint32_t opc__items_add(opc__items *t, unsigned kind, uint64_t uid, uint64_t ref,
                                uint64_t position, uint64_t bytes) {
    uint32_t i = t->free, *bucket;
    opc__entry *e;
    OPCOMMS_ASSERT(i != OPC__ITEMS_NONE);
    OPCOMMS_ASSERT(uid != 0);
    e = opc__items_at(t, i);
    t->free = e->next;
    t->free_count--;
    memset(e, 0, sizeof *e);
    e->uid = uid;
    e->ref[t->side] = ref;
    e->side = t->side & 1u;
    e->position = position;
    e->bytes = (bytes < OPC__ITEMS_BYTES_MAX ? (uint32_t)bytes : OPC__ITEMS_BYTES_MAX) &
               OPC__ITEMS_BYTES_MAX;
    e->kind = kind & 3u;
    e->next = OPC__ITEMS_NONE;
    e->prev = OPC__ITEMS_NONE;
    bucket = opc__items_bucket(t, uid, t->split);
    e->hash_next = *bucket;
    *bucket = i;
    t->count++;
    return i;
}

/* Whoever has it in a list has taken it out. */
OPC__FN void opc__items_remove(opc__items *t, uint32_t i) {
    opc__entry *e = opc__items_at(t, i);
    uint32_t *link;
    OPCOMMS_ASSERT(e->uid != 0);
    OPCOMMS_ASSERT(t->count > 0);
    link = opc__items_bucket(t, e->uid, t->split);
    while (*link != i) link = &opc__items_at(t, *link)->hash_next;
    *link = e->hash_next;
    if (e->side != t->side) t->moved--;
    e->uid = 0;
    e->next = t->free;
    t->free = i;
    t->free_count++;
    t->count--;
}

/* The end of a list: the new one stands behind what was last. */
OPC__FN void opc__items_append(opc__items *t, uint32_t *first, uint32_t *last, uint32_t i) {
    opc__entry *e = opc__items_at(t, i);
    e->next = OPC__ITEMS_NONE;
    e->prev = *last;
    if (*last == OPC__ITEMS_NONE) {
        *first = i;
    } else {
        opc__items_at(t, *last)->next = i;
    }
    *last = i;
}

OPC__FN void opc__items_unlink(opc__items *t, uint32_t *first, uint32_t *last, uint32_t i) {
    opc__entry *e = opc__items_at(t, i);
    if (e->prev == OPC__ITEMS_NONE) {
        OPCOMMS_ASSERT(*first == i);
        *first = e->next;
    } else {
        opc__items_at(t, e->prev)->next = e->next;
    }
    if (e->next == OPC__ITEMS_NONE) {
        OPCOMMS_ASSERT(*last == i);
        *last = e->prev;
    } else {
        opc__items_at(t, e->next)->prev = e->prev;
    }
    e->next = OPC__ITEMS_NONE;
    e->prev = OPC__ITEMS_NONE;
}

/* ---- compaction: what a store asks its owner, see opc__store_owner ---- */

OPC__FN int opc__items_live(const opc__items *t, uint64_t uid) {
    return opc__items_find(t, uid) != OPC__ITEMS_NONE;
}

OPC__FN void opc__items_moved(opc__items *t, uint64_t uid, uint64_t ref) {
    uint32_t i = opc__items_find(t, uid);
    opc__entry *e;
    if (i == OPC__ITEMS_NONE) return; /* over since it was copied */
    e = opc__items_at(t, i);
    if (e->side == t->side) t->moved++;
    e->side = !t->side;
    e->ref[e->side] = ref;
}

/* Switching takes no time, however many there are; giving up walks over all of them. */
OPC__FN void opc__items_switched(opc__items *t, int done) {
    uint32_t i, n = t->buckets.count * OPC__ITEMS_PIECE;
    if (done) {
        OPCOMMS_ASSERT(t->moved == t->count);
        t->side = !t->side;
    } else {
        for (i = 0; i < n && t->moved > 0; i++) {
            opc__entry *e = opc__items_at(t, i);
            if (e->uid == 0 || e->side == t->side) continue;
            e->side = t->side & 1u;
            t->moved--;
        }
    }
    t->moved = 0;
}

/* >>mailbox ==== L3 ==== unread messages by destination: who waits where, in which order */

#define OPC__MAILBOX_NONE OPC__ITEMS_NONE
#define OPC__MAILBOX_BUCKETS 256u

/* Unread messages of one sender in one box, for the depth limit. */
typedef struct opc__sender {
    uint8_t hash[32];
    uint32_t box;
    uint32_t count; /* 0: free */
    uint32_t next;
} opc__sender;

typedef struct opc__box {
    uint8_t *dest; /* opaque bytes */
    uint32_t dest_len;
    uint8_t id;
    uint8_t own; /* destination is ourselves */
    uint32_t first;
    uint32_t last;
    uint32_t count;
} opc__box;

typedef struct opc__mailbox {
    opc__mem *mem;
    uint8_t own_hash[32];
    char own_text[65];
    opc__box *boxes;
    uint32_t boxes_cap;
    uint32_t boxes_count;
    uint32_t foreign_count;
    uint32_t foreign_max;
    opc__items *items;
    uint32_t entries_max;
    uint32_t count; /* unread in all */
    opc__sender *senders;
    uint32_t senders_cap;
    uint32_t senders_free;
    uint32_t sender_bucket[OPC__MAILBOX_BUCKETS];
    uint32_t depth_max;
} opc__mailbox;

OPC__FN void opc__mailbox_init(opc__mailbox *m, opc__mem *mem, opc__items *items,
                               const uint8_t own_hash[32], uint32_t messages_max,
                               uint32_t depth_max, uint32_t foreign_max) {
    size_t i;
    memset(m, 0, sizeof *m);
    m->mem = mem;
    m->items = items;
    memcpy(m->own_hash, own_hash, 32);
    opc__str_hash_write(own_hash, m->own_text);
    m->entries_max = messages_max;
    m->depth_max = depth_max;
    m->foreign_max = foreign_max;
    m->senders_free = OPC__MAILBOX_NONE;
    for (i = 0; i < OPC__MAILBOX_BUCKETS; i++) m->sender_bucket[i] = OPC__MAILBOX_NONE;
}

OPC__FN void opc__mailbox_free(opc__mailbox *m) {
    uint32_t i;
    if (m->mem == NULL) return;
    for (i = 0; i < m->boxes_count; i++) {
        opc__mem_free(m->mem, m->boxes[i].dest, m->boxes[i].dest_len + 1u);
    }
    opc__mem_free(m->mem, m->boxes, (size_t)m->boxes_cap * sizeof *m->boxes);
    opc__mem_free(m->mem, m->senders, (size_t)m->senders_cap * sizeof *m->senders);
    memset(m, 0, sizeof *m);
}

OPC__FN int opc__mailbox_is_own(const opc__mailbox *m, const uint8_t *dest, uint32_t len) {
    return len == 64 && memcmp(dest, m->own_text, 64) == 0;
}

/* The box of a destination, or OPC__MAILBOX_NONE. */
OPC__FN uint32_t opc__mailbox_find(const opc__mailbox *m, const uint8_t *dest, uint32_t len,
                                   uint8_t id) {
    uint32_t i;
    for (i = 0; i < m->boxes_count; i++) {
        const opc__box *b = &m->boxes[i];
        if (b->id == id && b->dest_len == len && (len == 0 || memcmp(b->dest, dest, len) == 0)) {
            return i;
        }
    }
    return OPC__MAILBOX_NONE;
}

/* The cap on foreign boxes is reached: one that has been emptied serves another destination now. */
OPC__FN opcomms_err opc__mailbox_reuse(opc__mailbox *m, const uint8_t *dest, uint32_t len,
                                       uint8_t id, uint32_t *out) {
    uint8_t *copy;
    uint32_t i;
    for (i = 0; i < m->boxes_count && (m->boxes[i].own || m->boxes[i].count > 0);) i++;
    if (i == m->boxes_count) return OPCOMMS_E_LIMIT;
    copy = (uint8_t *)opc__mem_alloc(m->mem, (size_t)len + 1u);
    if (copy == NULL) return OPCOMMS_E_NOMEM;
    if (len > 0) memcpy(copy, dest, len);
    opc__mem_free(m->mem, m->boxes[i].dest, m->boxes[i].dest_len + 1u);
    m->boxes[i].dest = copy;
    m->boxes[i].dest_len = len;
    m->boxes[i].id = id;
    *out = i;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__mailbox_open(opc__mailbox *m, const uint8_t *dest, uint32_t len,
                                      uint8_t id, uint32_t *out) {
    uint32_t found = opc__mailbox_find(m, dest, len, id);
    int own = opc__mailbox_is_own(m, dest, len);
    opc__box *b;
    if (found != OPC__MAILBOX_NONE) {
        *out = found;
        return OPCOMMS_OK;
    }
    if (!own && m->foreign_count >= m->foreign_max) {
        return opc__mailbox_reuse(m, dest, len, id, out);
    }
    if (m->boxes_count == m->boxes_cap) {
        void *p = opc__items_grow(m->mem, m->boxes, &m->boxes_cap, OPC__ITEMS_BOX_MAX,
                                  sizeof *m->boxes);
        if (p == NULL) return OPCOMMS_E_NOMEM;
        m->boxes = (opc__box *)p;
    }
    b = &m->boxes[m->boxes_count];
    memset(b, 0, sizeof *b);
    b->dest = (uint8_t *)opc__mem_alloc(m->mem, (size_t)len + 1u);
    if (b->dest == NULL) return OPCOMMS_E_NOMEM;
    if (len > 0) memcpy(b->dest, dest, len);
    b->dest_len = len;
    b->id = id;
    b->own = (uint8_t)own;
    b->first = OPC__MAILBOX_NONE;
    b->last = OPC__MAILBOX_NONE;
    if (!own) m->foreign_count++;
    *out = m->boxes_count++;
    return OPCOMMS_OK;
}

OPC__FN uint32_t opc__mailbox_bucket(const uint8_t hash[32], uint32_t box) {
    return (opc__buf_be32(hash) ^ (box * 2654435761u)) % OPC__MAILBOX_BUCKETS;
}

OPC__FN uint32_t opc__mailbox_sender_find(const opc__mailbox *m, const uint8_t hash[32],
                                          uint32_t box) {
    uint32_t i = m->sender_bucket[opc__mailbox_bucket(hash, box)];
    while (i != OPC__MAILBOX_NONE) {
        const opc__sender *s = &m->senders[i];
        if (s->box == box && memcmp(s->hash, hash, 32) == 0) return i;
        i = s->next;
    }
    return OPC__MAILBOX_NONE;
}

OPC__FN uint32_t opc__mailbox_sender_add(opc__mailbox *m, const uint8_t hash[32], uint32_t box) {
    uint32_t i = opc__mailbox_sender_find(m, hash, box), bucket;
    if (i != OPC__MAILBOX_NONE) return i;
    if (m->senders_free == OPC__MAILBOX_NONE) {
        uint32_t old = m->senders_cap;
        void *p = opc__items_grow(m->mem, m->senders, &m->senders_cap, m->entries_max,
                                  sizeof *m->senders);
        if (p == NULL) return OPC__MAILBOX_NONE;
        m->senders = (opc__sender *)p;
        for (i = m->senders_cap; i > old; i--) {
            m->senders[i - 1].next = m->senders_free;
            m->senders_free = i - 1;
        }
    }
    i = m->senders_free;
    m->senders_free = m->senders[i].next;
    bucket = opc__mailbox_bucket(hash, box);
    memcpy(m->senders[i].hash, hash, 32);
    m->senders[i].box = box;
    m->senders[i].count = 0;
    m->senders[i].next = m->sender_bucket[bucket];
    m->sender_bucket[bucket] = i;
    return i;
}

OPC__FN void opc__mailbox_sender_drop(opc__mailbox *m, uint32_t i) {
    opc__sender *s = &m->senders[i];
    uint32_t *link = &m->sender_bucket[opc__mailbox_bucket(s->hash, s->box)];
    OPCOMMS_ASSERT(s->count == 0);
    while (*link != i) link = &m->senders[*link].next;
    *link = s->next;
    s->next = m->senders_free;
    m->senders_free = i;
}

/* Makes sure that one more message of this sender fits, before it is stored, so that `add` cannot
   fail afterwards. OPCOMMS_E_FULL: the depth or the total is reached. */
OPC__FN opcomms_err opc__mailbox_reserve(opc__mailbox *m, uint32_t box, const uint8_t from[32]) {
    uint32_t s = opc__mailbox_sender_find(m, from, box);
    OPCOMMS_ASSERT(box < m->boxes_count);
    if (m->count >= m->entries_max) return OPCOMMS_E_FULL;
    if (s != OPC__MAILBOX_NONE && m->senders[s].count >= m->depth_max) return OPCOMMS_E_FULL;
    if (opc__items_reserve(m->items, 1) != OPCOMMS_OK) return OPCOMMS_E_NOMEM;
    s = opc__mailbox_sender_add(m, from, box);
    if (s == OPC__MAILBOX_NONE) return OPCOMMS_E_NOMEM;
    if (m->senders[s].count == 0) opc__mailbox_sender_drop(m, s); /* only the space was wanted */
    return OPCOMMS_OK;
}

/* After opc__mailbox_reserve with the same arguments this cannot fail. */
OPC__FN void opc__mailbox_add(opc__mailbox *m, uint32_t box, const uint8_t from[32], uint64_t uid,
                              uint64_t ref, uint64_t position, uint64_t bytes) {
    uint32_t s = opc__mailbox_sender_add(m, from, box);
    uint32_t i = opc__items_add(m->items, OPC__KIND_IN, uid, ref, position, bytes);
    opc__box *b = &m->boxes[box];
    opc__entry *e = opc__items_at(m->items, i);
    OPCOMMS_ASSERT(s != OPC__MAILBOX_NONE);
    OPCOMMS_ASSERT(box < m->boxes_count);
    e->box = box & OPC__ITEMS_BOX_MAX;
    e->who = s;
    opc__items_append(m->items, &b->first, &b->last, i);
    b->count++;
    m->senders[s].count++;
    m->count++;
}

OPC__FN void opc__mailbox_remove(opc__mailbox *m, uint32_t i) {
    opc__entry *e = opc__items_at(m->items, i);
    opc__box *b = &m->boxes[e->box];
    OPCOMMS_ASSERT(e->kind == OPC__KIND_IN);
    OPCOMMS_ASSERT(b->count > 0);
    OPCOMMS_ASSERT(m->senders[e->who].count > 0);
    opc__items_unlink(m->items, &b->first, &b->last, i);
    b->count--;
    m->count--;
    if (--m->senders[e->who].count == 0) opc__mailbox_sender_drop(m, e->who);
    opc__items_remove(m->items, i);
}

/* The oldest visible message of a box; with `skip_out` one that is not handed out already. */
OPC__FN uint32_t opc__mailbox_oldest(const opc__mailbox *m, uint32_t box, uint64_t visible,
                                     int skip_out) {
    uint32_t i;
    if (box == OPC__MAILBOX_NONE) return OPC__MAILBOX_NONE;
    for (i = m->boxes[box].first; i != OPC__MAILBOX_NONE;) {
        const opc__entry *e = opc__items_at(m->items, i);
        if (e->position > visible) return OPC__MAILBOX_NONE;
        if (!skip_out || !e->out) return i;
        i = e->next;
    }
    return OPC__MAILBOX_NONE;
}

/* The visible message with this number in this box. */
OPC__FN uint32_t opc__mailbox_by_uid(const opc__mailbox *m, uint32_t box, uint64_t visible,
                                     uint64_t uid) {
    uint32_t i = opc__items_find(m->items, uid);
    const opc__entry *e;
    if (i == OPC__ITEMS_NONE) return OPC__MAILBOX_NONE;
    e = opc__items_at(m->items, i);
    if (e->kind != OPC__KIND_IN || e->box != box || e->position > visible) {
        return OPC__MAILBOX_NONE;
    }
    return i;
}

/* The next visible message behind entry i of a box that is not handed out. */
OPC__FN uint32_t opc__mailbox_after(const opc__mailbox *m, uint32_t i, uint64_t visible) {
    for (i = opc__items_at(m->items, i)->next; i != OPC__MAILBOX_NONE;
         i = opc__items_at(m->items, i)->next) {
        const opc__entry *e = opc__items_at(m->items, i);
        if (e->position > visible) return OPC__MAILBOX_NONE;
        if (!e->out) return i;
    }
    return OPC__MAILBOX_NONE;
}

/* Is this still the box of that destination? One that was emptied may serve another by now. */
OPC__FN int opc__mailbox_is(const opc__mailbox *m, uint32_t box, const uint8_t *dest, uint32_t len,
                            uint8_t id) {
    const opc__box *b = &m->boxes[box];
    return b->id == id && b->dest_len == len && (len == 0 || memcmp(b->dest, dest, len) == 0);
}

/* How many more messages of this sender fit. */
OPC__FN uint32_t opc__mailbox_free_for(const opc__mailbox *m, uint32_t box,
                                       const uint8_t from[32]) {
    uint32_t s = opc__mailbox_sender_find(m, from, box);
    uint32_t have = s != OPC__MAILBOX_NONE ? m->senders[s].count : 0;
    uint32_t free = m->entries_max > m->count ? m->entries_max - m->count : 0;
    uint32_t depth = m->depth_max > have ? m->depth_max - have : 0;
    return free < depth ? free : depth;
}

/* The oldest message of a sender behind entry `after` (OPC__MAILBOX_NONE: of all) in a box. */
OPC__FN uint32_t opc__mailbox_from(const opc__mailbox *m, uint32_t box, const uint8_t from[32],
                                   uint32_t after) {
    uint32_t s = opc__mailbox_sender_find(m, from, box), i;
    if (s == OPC__MAILBOX_NONE) return OPC__MAILBOX_NONE;
    i = after == OPC__MAILBOX_NONE ? m->boxes[box].first : opc__items_at(m->items, after)->next;
    while (i != OPC__MAILBOX_NONE && opc__items_at(m->items, i)->who != s) {
        i = opc__items_at(m->items, i)->next;
    }
    return i;
}

/* >>outbox ==== L3 ==== messages on their way: by destination, with retries; dead letters */

#define OPC__OUTBOX_DESTS_MAX 0x8000u
#define OPC__OUTBOX_ERAS_MAX 0xffffu
#define OPC__OUTBOX_EPOCHS_MAX 250u /* of messages for one server: what a HELLO has room for */
#define OPC__OUTBOX_KEYS 1024u
#define OPC__OUTBOX_SERVERS 256u

/* What has become of a queued message. */
enum {
    OPC__OUTBOX_QUEUED = 0,
    OPC__OUTBOX_SENT = 1,     /* under way on the present connection */
    OPC__OUTBOX_RECEIVED = 2, /* and the receiver has it, in memory */
    OPC__OUTBOX_DURABLE = 3,  /* stored there; waits until it is consumed */
    OPC__OUTBOX_OVER = 4,     /* as was asked for */
    OPC__OUTBOX_DEAD = 5
};

/* Where a destination stands. Whoever sends asks opc__outbox_due for READY ones, and parks one for
   which nothing can be done before something happens that is not known here.

       EMPTY  add-> FRESH  durable-> READY  sent-> REST  acknowledged-> EMPTY
                                     READY  park-> PARKED  wake-> READY
            connection lost: REST or PARKED  rewind-> READY  failed-> BACKOFF  time-> READY */
enum {
    OPC__OUTBOX_AT_EMPTY = 0,
    OPC__OUTBOX_AT_REST = 1,
    OPC__OUTBOX_AT_FRESH = 2, /* its next message is not durable here yet */
    OPC__OUTBOX_AT_READY = 3,
    OPC__OUTBOX_AT_PARKED = 4,
    OPC__OUTBOX_AT_BACKOFF = 5
};

/* A binary heap of numbered things; by number it finds their places, so that any can leave. */
typedef struct opc__heap_node {
    int64_t key; /* at place k: key and id of what stands there */
    uint32_t id;
    uint32_t place; /* of number k: its place + 1, or 0: it is not in the heap */
} opc__heap_node;

typedef struct opc__heap {
    opc__pieces nodes;
    uint32_t count;
} opc__heap;

/* What only some messages have: an end to trying. */
typedef struct opc__term {
    uint64_t position; /* of the entry, which holds our index in its place */
    int64_t expires_s; /* 0: never */
    uint32_t attempts_max; /* 0: no limit */
    uint32_t entry;    /* or the next free one */
} opc__term;

/* The queued messages of one destination that were queued in one opening of the log: one stream of
   the native protocol. One without messages is kept while it is the newest of its destination. */
typedef struct opc__era {
    opc__epoch epoch;
    uint64_t sent; /* the highest number that may have been sent */
    uint64_t received; /* the highest acknowledged, by level */
    uint64_t durable;
    uint64_t consumed;
    uint32_t first;  /* ascending by number */
    uint32_t last;
    uint32_t todo;   /* the first not known to be durable; those before wait to be consumed */
    uint32_t got;    /* the first not known to be received on this connection */
    uint32_t cursor; /* the next to send on this connection; OPC__ITEMS_NONE: none is left */
    uint32_t count;
    uint32_t dest;
    uint32_t next; /* the next newer one; or in the free list */
} opc__era;

typedef struct opc__dest {
    uint8_t server[32];
    uint8_t *dest;
    uint32_t dest_len;
    uint8_t from_id;
    uint8_t dest_id;
    uint8_t at;              /* OPC__OUTBOX_AT_ */
    uint8_t ask;             /* a connection is wanted to learn what was consumed */
    uint8_t wants;           /* the caller's: acknowledgements that its channels ask for */
    opcomms_address address; /* the latest that was named; family 0: none ever was */
    uint32_t held; /* the caller's count of uses: while above 0, no index here changes meaning */
    uint32_t count;
    uint64_t bytes;
    uint32_t under_way; /* sent on this connection and not known to be durable */
    uint32_t terms;     /* messages with an end to trying */
    uint32_t doublings; /* of the time between attempts */
    int32_t code;       /* of the last failed attempt */
    uint64_t retry_us;
    uint32_t era_first;
    uint32_t era_last;
    uint32_t next; /* among those EMPTY, FRESH or READY */
    uint32_t prev;
    uint32_t key_next;
    uint32_t server_next;
} opc__dest;

typedef struct opc__outbox_line {
    uint32_t first;
    uint32_t last;
    uint32_t count;
} opc__outbox_line;

/* Each is a limit; none means "no limit" by a special value. */
typedef struct opc__outbox_limits {
    uint32_t messages_max; /* queued and dead */
    uint32_t depth_max;    /* queued for one destination */
    uint32_t dests_max;
    uint32_t retry_min_ms;
    uint32_t retry_max_ms;
    uint64_t bytes_max; /* queued and dead */
} opc__outbox_limits;

typedef struct opc__outbox {
    opc__mem *mem;
    opc__items *items;
    opc__outbox_limits limits;
    opc__dest *dests;
    uint32_t dests_cap;
    uint32_t dests_count;
    opc__era *eras;
    uint32_t eras_cap;
    uint32_t eras_free;
    opc__pieces terms; /* opc__term */
    uint32_t terms_free;
    opc__heap ends;   /* terms by the time they end; INT64_MIN: the attempts are used up */
    opc__heap timers; /* destinations in BACKOFF by retry_us */
    opc__outbox_line empty;
    opc__outbox_line fresh;
    opc__outbox_line ready;
    uint64_t visible;
    uint64_t bytes;
    uint32_t queued;
    uint32_t dead;
    uint32_t dead_first; /* in the order in which they died; after opening, by number */
    uint32_t dead_last;
    uint32_t latest; /* the destination opened last, which may be another by now */
    uint32_t key_bucket[OPC__OUTBOX_KEYS];
    uint32_t server_bucket[OPC__OUTBOX_SERVERS];
} opc__outbox;

/* ---- the heap ---- */

OPC__FN opc__heap_node *opc__heap_at(const opc__heap *h, uint32_t k) {
    return (opc__heap_node *)opc__pieces_at(&h->nodes, k);
}

/* Makes sure that numbers below n can be in it; 0: out of memory. */
OPC__FN int opc__heap_reserve(opc__heap *h, opc__mem *mem, uint32_t n) {
    while (h->nodes.count < (n + OPC__ITEMS_PIECE - 1u) / OPC__ITEMS_PIECE) {
        if (!opc__pieces_more(&h->nodes, mem)) return 0;
    }
    return 1;
}

OPC__FN void opc__heap_put(opc__heap *h, uint32_t k, int64_t key, uint32_t id) {
    opc__heap_at(h, k)->key = key;
    opc__heap_at(h, k)->id = id;
    opc__heap_at(h, id)->place = k + 1;
}

/* Finds the place for a key, from the free place k up or down, and puts it there. */
OPC__FN void opc__heap_settle(opc__heap *h, uint32_t k, int64_t key, uint32_t id) {
    while (k > 0) {
        const opc__heap_node *up = opc__heap_at(h, (k - 1) / 2);
        if (up->key <= key) break;
        opc__heap_put(h, k, up->key, up->id);
        k = (k - 1) / 2;
    }
    for (;;) {
        uint32_t child = 2 * k + 1;
        const opc__heap_node *down;
        if (child >= h->count) break;
        if (child + 1 < h->count &&
            opc__heap_at(h, child + 1)->key < opc__heap_at(h, child)->key) {
            child++;
        }
        down = opc__heap_at(h, child);
        if (down->key >= key) break;
        opc__heap_put(h, k, down->key, down->id);
        k = child;
    }
    opc__heap_put(h, k, key, id);
}

OPC__FN void opc__heap_drop(opc__heap *h, uint32_t id) {
    uint32_t k = opc__heap_at(h, id)->place;
    opc__heap_node last;
    if (k == 0) return;
    opc__heap_at(h, id)->place = 0;
    last = *opc__heap_at(h, --h->count);
    if (k - 1 != h->count) opc__heap_settle(h, k - 1, last.key, last.id);
}

OPC__FN void opc__heap_set(opc__heap *h, uint32_t id, int64_t key) {
    opc__heap_drop(h, id);
    h->count++;
    opc__heap_settle(h, h->count - 1, key, id);
}

/* ---- entries ---- */

OPC__FN uint32_t opc__outbox_attempts(const opc__entry *e) { return e->who >> 16; }

OPC__FN opc__era *opc__outbox_era(const opc__outbox *o, const opc__entry *e) {
    OPCOMMS_ASSERT(e->kind == OPC__KIND_OUT);
    return &o->eras[e->who & 0xffffu];
}

OPC__FN opc__term *opc__outbox_term(const opc__outbox *o, const opc__entry *e) {
    if (!e->term) return NULL;
    return (opc__term *)opc__pieces_at(&o->terms, (uint32_t)e->position);
}

/* When the store has got this far, the entry may be sent. */
OPC__FN uint64_t opc__outbox_position(const opc__outbox *o, const opc__entry *e) {
    const opc__term *t = opc__outbox_term(o, e);
    return t != NULL ? t->position : e->position;
}

OPC__FN int32_t opc__outbox_dead_code(const opc__entry *e) {
    OPCOMMS_ASSERT(e->kind == OPC__KIND_DEAD);
    return -(int32_t)e->box;
}

OPC__FN int64_t opc__outbox_dead_s(const opc__entry *e) {
    OPCOMMS_ASSERT(e->kind == OPC__KIND_DEAD);
    return (int64_t)e->position;
}

OPC__FN int opc__outbox_before(const opc__outbox *o, const opc__entry *e, uint32_t mark) {
    return mark == OPC__ITEMS_NONE || e->uid < opc__items_at(o->items, mark)->uid;
}

/* OPC__OUTBOX_, but not OVER: what is over is not here. */
OPC__FN int opc__outbox_state(const opc__outbox *o, uint32_t i) {
    const opc__entry *e = opc__items_at(o->items, i);
    const opc__era *r;
    if (e->kind == OPC__KIND_DEAD) return OPC__OUTBOX_DEAD;
    r = opc__outbox_era(o, e);
    if (opc__outbox_before(o, e, r->todo)) return OPC__OUTBOX_DURABLE;
    if (!opc__outbox_before(o, e, r->cursor)) return OPC__OUTBOX_QUEUED;
    return e->uid <= r->received ? OPC__OUTBOX_RECEIVED : OPC__OUTBOX_SENT;
}

/* When trying ends for entry i, as things are now. One under way has no end: what becomes of it is
   known when its connection ends, at the latest. */
OPC__FN void opc__outbox_end_set(opc__outbox *o, uint32_t i) {
    const opc__entry *e = opc__items_at(o->items, i);
    const opc__term *t = opc__outbox_term(o, e);
    if (t == NULL) return;
    if (t->attempts_max != 0 && opc__outbox_attempts(e) >= t->attempts_max) {
        opc__heap_set(&o->ends, (uint32_t)e->position, INT64_MIN);
    } else if (t->expires_s != 0) {
        opc__heap_set(&o->ends, (uint32_t)e->position, t->expires_s);
    }
}

OPC__FN void opc__outbox_term_drop(opc__outbox *o, uint32_t i) {
    opc__entry *e = opc__items_at(o->items, i);
    opc__term *t = opc__outbox_term(o, e);
    uint32_t k = (uint32_t)e->position;
    if (t == NULL) return;
    opc__heap_drop(&o->ends, k);
    OPCOMMS_ASSERT(o->dests[e->box].terms > 0);
    o->dests[e->box].terms--;
    e->position = t->position;
    e->term = 0;
    t->entry = o->terms_free;
    o->terms_free = k;
}

/* Makes sure of n free ones, of which there are OPC__ITEMS_PIECE at most; 0: out of memory. */
OPC__FN int opc__outbox_term_reserve(opc__outbox *o, uint32_t n) {
    uint32_t first = o->terms.count * OPC__ITEMS_PIECE, i = o->terms_free;
    while (n > 0 && i != OPC__ITEMS_NONE) {
        i = ((const opc__term *)opc__pieces_at(&o->terms, i))->entry;
        n--;
    }
    if (n == 0) return 1;
    if (!opc__heap_reserve(&o->ends, o->mem, first + OPC__ITEMS_PIECE)) return 0;
    if (!opc__pieces_more(&o->terms, o->mem)) return 0;
    for (i = first + OPC__ITEMS_PIECE; i > first; i--) {
        ((opc__term *)opc__pieces_at(&o->terms, i - 1))->entry = o->terms_free;
        o->terms_free = i - 1;
    }
    return 1;
}

/* ---- destinations: where they stand ---- */

OPC__FN opc__outbox_line *opc__outbox_line_of(opc__outbox *o, int at) {
    if (at == OPC__OUTBOX_AT_EMPTY) return &o->empty;
    if (at == OPC__OUTBOX_AT_FRESH) return &o->fresh;
    return at == OPC__OUTBOX_AT_READY ? &o->ready : NULL;
}

OPC__FN void opc__outbox_leave(opc__outbox *o, uint32_t d) {
    opc__dest *x = &o->dests[d];
    opc__outbox_line *l = opc__outbox_line_of(o, x->at);
    if (x->at == OPC__OUTBOX_AT_BACKOFF) opc__heap_drop(&o->timers, d);
    if (l == NULL) return;
    if (x->prev == OPC__ITEMS_NONE) {
        l->first = x->next;
    } else {
        o->dests[x->prev].next = x->next;
    }
    if (x->next == OPC__ITEMS_NONE) {
        l->last = x->prev;
    } else {
        o->dests[x->next].prev = x->prev;
    }
    l->count--;
}

OPC__FN void opc__outbox_enter(opc__outbox *o, uint32_t d, int at) {
    opc__dest *x = &o->dests[d];
    opc__outbox_line *l = opc__outbox_line_of(o, at);
    x->at = (uint8_t)at;
    x->next = OPC__ITEMS_NONE;
    x->prev = OPC__ITEMS_NONE;
    if (at == OPC__OUTBOX_AT_BACKOFF) {
        opc__heap_set(&o->timers, d, (int64_t)(x->retry_us & INT64_MAX));
    }
    if (l == NULL) return;
    x->prev = l->last;
    if (l->last == OPC__ITEMS_NONE) {
        l->first = d;
    } else {
        o->dests[l->last].next = d;
    }
    l->last = d;
    l->count++;
}

/* The next to send, durable here or not. Nothing of a later opening is sent before all of the
   earlier ones is known to be durable: the receiver takes what is older than the newest epoch it
   has seen for a duplicate. */
OPC__FN uint32_t opc__outbox_cursor(const opc__outbox *o, uint32_t d) {
    uint32_t r;
    for (r = o->dests[d].era_first; r != OPC__ITEMS_NONE; r = o->eras[r].next) {
        if (o->eras[r].cursor != OPC__ITEMS_NONE) return o->eras[r].cursor;
        if (o->eras[r].todo != OPC__ITEMS_NONE) return OPC__ITEMS_NONE;
    }
    return OPC__ITEMS_NONE;
}

/* Puts a destination where it belongs after a change. What is parked stays so while it has anything
   to send, and time alone ends a backoff. */
OPC__FN void opc__outbox_settle(opc__outbox *o, uint32_t d) {
    const opc__dest *x = &o->dests[d];
    uint32_t i;
    int at = OPC__OUTBOX_AT_EMPTY;
    if (x->at == OPC__OUTBOX_AT_BACKOFF) return;
    if (x->count > 0) {
        i = opc__outbox_cursor(o, d);
        if (i == OPC__ITEMS_NONE) {
            at = x->ask ? OPC__OUTBOX_AT_READY : OPC__OUTBOX_AT_REST;
        } else if (opc__outbox_position(o, opc__items_at(o->items, i)) > o->visible) {
            at = OPC__OUTBOX_AT_FRESH;
        } else {
            at = OPC__OUTBOX_AT_READY;
        }
        if (x->at == OPC__OUTBOX_AT_PARKED && at != OPC__OUTBOX_AT_REST) return;
    }
    if (x->at == at) return;
    opc__outbox_leave(o, d);
    opc__outbox_enter(o, d, at);
}

/* The caller waits for something that concerns it, a connection or room, and calls wake then. */
OPC__FN void opc__outbox_park(opc__outbox *o, uint32_t d) {
    if (o->dests[d].at != OPC__OUTBOX_AT_READY && o->dests[d].at != OPC__OUTBOX_AT_FRESH) return;
    opc__outbox_leave(o, d);
    opc__outbox_enter(o, d, OPC__OUTBOX_AT_PARKED);
}

/* Ends parking, and a backoff before its time. */
OPC__FN void opc__outbox_wake(opc__outbox *o, uint32_t d) {
    opc__dest *x = &o->dests[d];
    if (x->at != OPC__OUTBOX_AT_PARKED && x->at != OPC__OUTBOX_AT_BACKOFF) return;
    opc__outbox_leave(o, d);
    opc__outbox_enter(o, d, OPC__OUTBOX_AT_REST);
    opc__outbox_settle(o, d);
}

/* ---- eras ---- */

/* The era of a destination, or OPC__ITEMS_NONE. */
OPC__FN uint32_t opc__outbox_era_find(const opc__outbox *o, uint32_t d, const opc__epoch *epoch) {
    uint32_t r = o->dests[d].era_first;
    while (r != OPC__ITEMS_NONE && !opc__epoch_equal(&o->eras[r].epoch, epoch)) {
        r = o->eras[r].next;
    }
    return r;
}

/* The oldest era of a destination that holds messages, or OPC__ITEMS_NONE. */
OPC__FN uint32_t opc__outbox_oldest_era(const opc__outbox *o, uint32_t d) {
    uint32_t r = o->dests[d].era_first;
    while (r != OPC__ITEMS_NONE && o->eras[r].count == 0) r = o->eras[r].next;
    return r;
}

/* Frees those eras of a destination that hold nothing, but for the newest; with `all` it too. */
OPC__FN void opc__outbox_eras_drop(opc__outbox *o, uint32_t d, int all) {
    opc__dest *x = &o->dests[d];
    uint32_t r = x->era_first, last = OPC__ITEMS_NONE, next;
    if (x->held > 0) return;
    x->era_first = OPC__ITEMS_NONE;
    for (; r != OPC__ITEMS_NONE; r = next) {
        opc__era *a = &o->eras[r];
        next = a->next;
        if (a->count == 0 && (all || next != OPC__ITEMS_NONE)) {
            a->next = o->eras_free;
            o->eras_free = r;
            continue;
        }
        if (last == OPC__ITEMS_NONE) {
            x->era_first = r;
        } else {
            o->eras[last].next = r;
        }
        last = r;
    }
    x->era_last = last;
}

/* Makes the era of `epoch` the newest of a destination. */
OPC__FN opcomms_err opc__outbox_era_open(opc__outbox *o, uint32_t d, const opc__epoch *epoch) {
    opc__dest *x = &o->dests[d];
    opc__era *a;
    uint32_t r = x->era_last, i, old = o->eras_cap;
    if (r != OPC__ITEMS_NONE && opc__epoch_equal(&o->eras[r].epoch, epoch)) {
        return OPCOMMS_OK;
    }
    if (o->eras_free == OPC__ITEMS_NONE) {
        void *p;
        if (old >= OPC__OUTBOX_ERAS_MAX) return OPCOMMS_E_FULL;
        p = opc__items_grow(o->mem, o->eras, &o->eras_cap, OPC__OUTBOX_ERAS_MAX, sizeof *o->eras);
        if (p == NULL) return OPCOMMS_E_NOMEM;
        o->eras = (opc__era *)p;
        for (i = o->eras_cap; i > old; i--) {
            o->eras[i - 1].next = o->eras_free;
            o->eras_free = i - 1;
        }
    }
    r = o->eras_free;
    a = &o->eras[r];
    o->eras_free = a->next;
    memset(a, 0, sizeof *a);
    a->epoch = *epoch;
    a->first = OPC__ITEMS_NONE;
    a->last = OPC__ITEMS_NONE;
    a->todo = OPC__ITEMS_NONE;
    a->got = OPC__ITEMS_NONE;
    a->cursor = OPC__ITEMS_NONE;
    a->dest = d;
    a->next = OPC__ITEMS_NONE;
    if (x->era_last == OPC__ITEMS_NONE) {
        x->era_first = r;
    } else {
        o->eras[x->era_last].next = r;
    }
    x->era_last = r;
    opc__outbox_eras_drop(o, d, 0);
    return OPCOMMS_OK;
}

/* ---- destinations: finding and opening ---- */

OPC__FN void opc__outbox_init(opc__outbox *o, opc__mem *mem, opc__items *items,
                              const opc__outbox_limits *limits) {
    uint32_t i;
    memset(o, 0, sizeof *o);
    o->mem = mem;
    o->items = items;
    o->limits = *limits;
    if (o->limits.dests_max > OPC__OUTBOX_DESTS_MAX) o->limits.dests_max = OPC__OUTBOX_DESTS_MAX;
    o->terms.bytes = sizeof(opc__term);
    o->ends.nodes.bytes = sizeof(opc__heap_node);
    o->timers.nodes.bytes = sizeof(opc__heap_node);
    o->eras_free = OPC__ITEMS_NONE;
    o->terms_free = OPC__ITEMS_NONE;
    o->empty.first = o->empty.last = OPC__ITEMS_NONE;
    o->fresh.first = o->fresh.last = OPC__ITEMS_NONE;
    o->ready.first = o->ready.last = OPC__ITEMS_NONE;
    o->dead_first = o->dead_last = OPC__ITEMS_NONE;
    for (i = 0; i < OPC__OUTBOX_KEYS; i++) o->key_bucket[i] = OPC__ITEMS_NONE;
    for (i = 0; i < OPC__OUTBOX_SERVERS; i++) o->server_bucket[i] = OPC__ITEMS_NONE;
}

OPC__FN void opc__outbox_free(opc__outbox *o) {
    uint32_t i;
    if (o->mem == NULL) return;
    for (i = 0; i < o->dests_count; i++) {
        opc__mem_free(o->mem, o->dests[i].dest, o->dests[i].dest_len + 1u);
    }
    opc__mem_free(o->mem, o->dests, (size_t)o->dests_cap * sizeof *o->dests);
    opc__mem_free(o->mem, o->eras, (size_t)o->eras_cap * sizeof *o->eras);
    opc__pieces_free(&o->terms, o->mem);
    opc__pieces_free(&o->ends.nodes, o->mem);
    opc__pieces_free(&o->timers.nodes, o->mem);
    memset(o, 0, sizeof *o);
}

/* Of a key's hash and at most the ends of the identity: the program's own choice, not a peer's. */
OPC__FN uint32_t opc__outbox_key(const uint8_t server[32], uint8_t from_id, const uint8_t *dest,
                                 uint32_t len, uint8_t dest_id) {
    uint32_t h = opc__buf_be32(server) ^ len, i;
    h = h * 16777619u ^ from_id;
    h = h * 16777619u ^ dest_id;
    for (i = 0; i < len && i < 8; i++) {
        h = h * 16777619u ^ dest[i];
        h = h * 16777619u ^ dest[len - 1 - i];
    }
    return (h ^ (h >> 16)) % OPC__OUTBOX_KEYS;
}

OPC__FN uint32_t opc__outbox_key_of(const opc__dest *x) {
    return opc__outbox_key(x->server, x->from_id, x->dest, x->dest_len, x->dest_id);
}

OPC__FN int opc__outbox_is(const opc__dest *x, const uint8_t server[32], uint8_t from_id,
                           const uint8_t *dest, uint32_t len, uint8_t dest_id) {
    return x->from_id == from_id && x->dest_id == dest_id && x->dest_len == len &&
           memcmp(x->server, server, 32) == 0 && (len == 0 || memcmp(x->dest, dest, len) == 0);
}

/* The index of a destination, or OPC__ITEMS_NONE. */
OPC__FN uint32_t opc__outbox_find(const opc__outbox *o, const uint8_t server[32], uint8_t from_id,
                                  const uint8_t *dest, uint32_t len, uint8_t dest_id) {
    uint32_t d = o->latest;
    if (d < o->dests_count && opc__outbox_is(&o->dests[d], server, from_id, dest, len, dest_id)) {
        return d;
    }
    d = o->key_bucket[opc__outbox_key(server, from_id, dest, len, dest_id)];
    while (d != OPC__ITEMS_NONE &&
           !opc__outbox_is(&o->dests[d], server, from_id, dest, len, dest_id)) {
        d = o->dests[d].key_next;
    }
    return d;
}

/* The destination after `after` at a server, OPC__ITEMS_NONE: the first; or OPC__ITEMS_NONE. */
OPC__FN uint32_t opc__outbox_of_server(const opc__outbox *o, const uint8_t server[32],
                                       uint32_t after) {
    uint32_t d = after != OPC__ITEMS_NONE ? o->dests[after].server_next
                                          : o->server_bucket[server[0] % OPC__OUTBOX_SERVERS];
    while (d != OPC__ITEMS_NONE && memcmp(o->dests[d].server, server, 32) != 0) {
        d = o->dests[d].server_next;
    }
    return d;
}

/* How many messages are queued for a server. */
OPC__FN uint32_t opc__outbox_server_count(const opc__outbox *o, const uint8_t server[32]) {
    uint32_t n = 0, d = opc__outbox_of_server(o, server, OPC__ITEMS_NONE);
    for (; d != OPC__ITEMS_NONE; d = opc__outbox_of_server(o, server, d)) n += o->dests[d].count;
    return n;
}

/* The epochs of all messages queued for a server, ascending, each once, into `out` with room for
   `cap`. The result is their number, or cap + 1: there are more than fit. */
OPC__FN uint32_t opc__outbox_epochs(const opc__outbox *o, const uint8_t server[32], opc__epoch *out,
                                    uint32_t cap) {
    uint32_t n = 0, d = opc__outbox_of_server(o, server, OPC__ITEMS_NONE), r, k;
    for (; d != OPC__ITEMS_NONE; d = opc__outbox_of_server(o, server, d)) {
        for (r = o->dests[d].era_first; r != OPC__ITEMS_NONE; r = o->eras[r].next) {
            const opc__epoch *e = &o->eras[r].epoch;
            if (o->eras[r].count == 0) continue;
            for (k = n; k > 0; k--) { /* from the end: mostly they come ascending */
                if (out[k - 1].counter < e->counter) break;
                if (out[k - 1].counter == e->counter && out[k - 1].random <= e->random) break;
            }
            if (k > 0 && opc__epoch_equal(&out[k - 1], e)) continue;
            if (n == cap) return cap + 1;
            memmove(&out[k + 1], &out[k], (size_t)(n - k) * sizeof *out);
            out[k] = *e;
            n++;
        }
    }
    return n;
}

/* Takes an emptied destination out of all lists, so that its place serves another. */
OPC__FN void opc__outbox_close(opc__outbox *o, uint32_t d) {
    opc__dest *x = &o->dests[d];
    uint32_t *link = &o->key_bucket[opc__outbox_key_of(x)];
    OPCOMMS_ASSERT(x->count == 0);
    OPCOMMS_ASSERT(x->held == 0);
    while (*link != d) link = &o->dests[*link].key_next;
    *link = x->key_next;
    link = &o->server_bucket[x->server[0] % OPC__OUTBOX_SERVERS];
    while (*link != d) link = &o->dests[*link].server_next;
    *link = x->server_next;
    opc__outbox_eras_drop(o, d, 1);
    opc__outbox_leave(o, d);
    opc__mem_free(o->mem, x->dest, x->dest_len + 1u);
    memset(x, 0, sizeof *x);
}

/* A place for a destination: a new one while there are fewer than `max`, else that which has been
   empty longest. */
OPC__FN opcomms_err opc__outbox_place(opc__outbox *o, uint32_t max, uint32_t *out) {
    uint32_t d = o->empty.first;
    if (o->dests_count < max) {
        if (!opc__heap_reserve(&o->timers, o->mem, o->dests_count + 1)) return OPCOMMS_E_NOMEM;
        if (o->dests_count == o->dests_cap) {
            void *p = opc__items_grow(o->mem, o->dests, &o->dests_cap, OPC__OUTBOX_DESTS_MAX,
                                      sizeof *o->dests);
            if (p == NULL) return OPCOMMS_E_NOMEM;
            o->dests = (opc__dest *)p;
        }
        *out = o->dests_count;
        return OPCOMMS_OK;
    }
    while (d != OPC__ITEMS_NONE && o->dests[d].held > 0) d = o->dests[d].next;
    if (d == OPC__ITEMS_NONE) return OPCOMMS_E_LIMIT;
    *out = d;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__outbox_open_max(opc__outbox *o, const uint8_t server[32], uint8_t from_id,
                                         const uint8_t *dest, uint32_t len, uint8_t dest_id,
                                         uint32_t max, uint32_t *out) {
    uint32_t d, bucket;
    opc__dest *x;
    uint8_t *copy;
    opcomms_err rc;
    if (len > 1024u) return OPCOMMS_E_INVAL;
    d = opc__outbox_find(o, server, from_id, dest, len, dest_id);
    if (d != OPC__ITEMS_NONE) {
        o->latest = d;
        *out = d;
        return OPCOMMS_OK;
    }
    rc = opc__outbox_place(o, max, &d);
    if (rc != OPCOMMS_OK) return rc;
    copy = (uint8_t *)opc__mem_alloc(o->mem, (size_t)len + 1u);
    if (copy == NULL) return OPCOMMS_E_NOMEM;
    if (len > 0) memcpy(copy, dest, len);
    if (d == o->dests_count) {
        o->dests_count++;
    } else {
        opc__outbox_close(o, d);
    }
    x = &o->dests[d];
    memset(x, 0, sizeof *x);
    memcpy(x->server, server, 32);
    x->dest = copy;
    x->dest_len = len;
    x->from_id = from_id;
    x->dest_id = dest_id;
    x->era_first = OPC__ITEMS_NONE;
    x->era_last = OPC__ITEMS_NONE;
    bucket = opc__outbox_key_of(x);
    x->key_next = o->key_bucket[bucket];
    o->key_bucket[bucket] = d;
    bucket = server[0] % OPC__OUTBOX_SERVERS;
    x->server_next = o->server_bucket[bucket];
    o->server_bucket[bucket] = d;
    opc__outbox_enter(o, d, OPC__OUTBOX_AT_EMPTY);
    *out = d;
    return OPCOMMS_OK;
}

/* The index of a destination, which is made if need be. It keeps its meaning while messages are
   queued for it or it is held. OPCOMMS_E_LIMIT: there are too many that are not empty. */
OPC__FN opcomms_err opc__outbox_open(opc__outbox *o, const uint8_t server[32], uint8_t from_id,
                                     const uint8_t *dest, uint32_t len, uint8_t dest_id,
                                     uint32_t *out) {
    return opc__outbox_open_max(o, server, from_id, dest, len, dest_id, o->limits.dests_max, out);
}

/* ---- queueing ---- */

/* Makes sure that this message can be added once it is stored. OPCOMMS_E_FULL: a limit on messages
   is reached; OPCOMMS_E_LIMIT: it is too large for any limit. */
OPC__FN opcomms_err opc__outbox_reserve(opc__outbox *o, uint32_t d, const opc__msg_meta *m) {
    const opc__outbox_limits *l = &o->limits;
    const opc__dest *x = &o->dests[d];
    opc__epoch seen[OPC__OUTBOX_EPOCHS_MAX];
    uint32_t n;
    OPCOMMS_ASSERT(d < o->dests_count);
    if (m->bytes >= OPC__ITEMS_BYTES_MAX || m->bytes > l->bytes_max) return OPCOMMS_E_LIMIT;
    if (o->queued >= l->messages_max || o->dead >= l->messages_max - o->queued) {
        return OPCOMMS_E_FULL;
    }
    if (x->count >= l->depth_max) return OPCOMMS_E_FULL;
    if (o->bytes > l->bytes_max || m->bytes > l->bytes_max - o->bytes) return OPCOMMS_E_FULL;
    if (opc__items_reserve(o->items, 1) != OPCOMMS_OK) return OPCOMMS_E_NOMEM;
    if ((m->expires_s != 0 || m->attempts_max != 0) && !opc__outbox_term_reserve(o, 1)) {
        return OPCOMMS_E_NOMEM;
    }
    if (x->era_last != OPC__ITEMS_NONE &&
        opc__epoch_equal(&o->eras[x->era_last].epoch, &m->epoch)) {
        return OPCOMMS_OK;
    }
    n = opc__outbox_epochs(o, x->server, seen, OPC__OUTBOX_EPOCHS_MAX);
    if (n >= OPC__OUTBOX_EPOCHS_MAX) {
        for (n = 0; n < OPC__OUTBOX_EPOCHS_MAX; n++) {
            if (opc__epoch_equal(&seen[n], &m->epoch)) break;
        }
        if (n == OPC__OUTBOX_EPOCHS_MAX) return OPCOMMS_E_FULL;
    }
    return opc__outbox_era_open(o, d, &m->epoch);
}

OPC__FN void opc__outbox_term_add(opc__outbox *o, opc__entry *e, uint32_t i,
                                  const opc__msg_meta *m) {
    uint32_t k = o->terms_free;
    opc__term *t;
    OPCOMMS_ASSERT(k != OPC__ITEMS_NONE);
    t = (opc__term *)opc__pieces_at(&o->terms, k);
    o->terms_free = t->entry;
    t->position = e->position;
    t->expires_s = m->expires_s;
    t->attempts_max = m->attempts_max;
    t->entry = i;
    e->position = k;
    e->term = 1;
    o->dests[e->box].terms++;
    opc__outbox_end_set(o, i);
}

/* After opc__outbox_reserve for the same message this cannot fail. Of `m` count: epoch, address,
   bytes, level, attempts_max, expires_s, and of one found at opening attempts and tried. Numbers
   ascend. */
OPC__FN uint32_t opc__outbox_add(opc__outbox *o, uint32_t d, const opc__msg_meta *m, uint64_t uid,
                                 uint64_t ref, uint64_t position) {
    opc__dest *x = &o->dests[d];
    uint32_t i = opc__items_add(o->items, OPC__KIND_OUT, uid, ref, position, m->bytes);
    uint32_t attempts = m->attempts < 0xffffu ? m->attempts : 0xffffu;
    opc__entry *e = opc__items_at(o->items, i);
    opc__era *a;
    OPCOMMS_ASSERT(x->era_last != OPC__ITEMS_NONE);
    a = &o->eras[x->era_last];
    OPCOMMS_ASSERT(opc__epoch_equal(&a->epoch, &m->epoch));
    OPCOMMS_ASSERT(a->last == OPC__ITEMS_NONE || uid > opc__items_at(o->items, a->last)->uid);
    e->box = d & OPC__ITEMS_BOX_MAX;
    e->who = attempts << 16 | x->era_last;
    e->level = m->level >= OPC__LEVEL_RECEIVED && m->level <= OPC__LEVEL_CONSUMED
                   ? m->level & 3u
                   : (unsigned)OPC__LEVEL_DURABLE;
    e->tried = m->tried & 3u;
    opc__items_append(o->items, &a->first, &a->last, i);
    if (a->todo == OPC__ITEMS_NONE) a->todo = i;
    if (a->got == OPC__ITEMS_NONE) a->got = i;
    if (a->cursor == OPC__ITEMS_NONE) a->cursor = i;
    a->count++;
    x->count++;
    x->bytes += e->bytes;
    o->queued++;
    o->bytes += e->bytes;
    if (m->address.family != 0) x->address = m->address;
    if (m->expires_s != 0 || m->attempts_max != 0) opc__outbox_term_add(o, e, i, m);
    opc__outbox_settle(o, d);
    return i;
}

/* A queued message or dead letter found at opening, whatever the limits say now. */
OPC__FN opcomms_err opc__outbox_found(opc__outbox *o, const opc__msg_meta *m, uint64_t uid,
                                      uint64_t ref) {
    uint32_t d = 0, i;
    opc__era *a;
    opc__entry *e;
    opcomms_err rc;
    if (uid == 0 || opc__items_find(o->items, uid) != OPC__ITEMS_NONE) {
        return OPCOMMS_E_LOG_DAMAGED;
    }
    if (opc__items_reserve(o->items, 1) != OPCOMMS_OK) return OPCOMMS_E_NOMEM;
    if (m->kind == OPC__KIND_DEAD) {
        i = opc__items_add(o->items, OPC__KIND_DEAD, uid, ref, (uint64_t)m->dead_s, m->bytes);
        e = opc__items_at(o->items, i);
        e->box = m->code < 0 && m->code >= -(int32_t)OPC__ITEMS_BOX_MAX
                     ? (uint32_t)-m->code & OPC__ITEMS_BOX_MAX
                     : (uint32_t)-OPCOMMS_E_UNKNOWN_OUTCOME & OPC__ITEMS_BOX_MAX;
        e->who = (m->attempts < 0xffffu ? m->attempts : 0xffffu) << 16;
        e->tried = m->tried & 3u;
        opc__items_append(o->items, &o->dead_first, &o->dead_last, i);
        o->dead++;
        o->bytes += e->bytes;
        return OPCOMMS_OK;
    }
    if (!opc__outbox_term_reserve(o, 1)) return OPCOMMS_E_NOMEM;
    rc = opc__outbox_open_max(o, m->server, m->from_id, m->dest, m->dest_len, m->dest_id,
                              OPC__OUTBOX_DESTS_MAX, &d);
    if (rc == OPCOMMS_OK) rc = opc__outbox_era_open(o, d, &m->epoch);
    if (rc != OPCOMMS_OK) return rc;
    a = &o->eras[o->dests[d].era_last];
    if (a->last != OPC__ITEMS_NONE && uid < opc__items_at(o->items, a->last)->uid) {
        return OPCOMMS_E_LOG_DAMAGED;
    }
    (void)opc__outbox_add(o, d, m, uid, ref, 0);
    a->sent = uid; /* perhaps: before the log was opened */
    if (m->code != 0) o->dests[d].code = m->code;
    return OPCOMMS_OK;
}

/* ---- leaving the queue ---- */

/* Takes entry i out of its era; `e` is not in any list then. */
OPC__FN void opc__outbox_out(opc__outbox *o, uint32_t i) {
    opc__entry *e = opc__items_at(o->items, i);
    opc__era *a = opc__outbox_era(o, e);
    opc__dest *x = &o->dests[e->box];
    int state = opc__outbox_state(o, i);
    OPCOMMS_ASSERT(a->count > 0);
    OPCOMMS_ASSERT(x->count > 0);
    opc__outbox_term_drop(o, i);
    if (state == OPC__OUTBOX_SENT || state == OPC__OUTBOX_RECEIVED) x->under_way--;
    if (a->todo == i) a->todo = e->next;
    if (a->got == i) a->got = e->next;
    if (a->cursor == i) a->cursor = e->next;
    opc__items_unlink(o->items, &a->first, &a->last, i);
    a->count--;
    x->count--;
    x->bytes -= e->bytes;
    o->queued--;
    if (x->count == 0) x->ask = 0;
    if (a->count == 0) opc__outbox_eras_drop(o, e->box, 0);
    opc__outbox_settle(o, e->box);
}

/* It is over: delivered or cancelled, and the store knows. */
OPC__FN void opc__outbox_remove(opc__outbox *o, uint32_t i) {
    o->bytes -= opc__items_at(o->items, i)->bytes;
    opc__outbox_out(o, i);
    opc__items_remove(o->items, i);
}

/* It is a dead letter from now on, and the store knows. `code`: an opcomms_err. */
OPC__FN void opc__outbox_kill(opc__outbox *o, uint32_t i, int32_t code, int64_t now_s) {
    opc__entry *e = opc__items_at(o->items, i);
    OPCOMMS_ASSERT(code < 0);
    opc__outbox_out(o, i);
    e->kind = OPC__KIND_DEAD;
    e->box = (uint32_t)-code & OPC__ITEMS_BOX_MAX;
    e->who &= 0xffff0000u;
    e->position = (uint64_t)now_s;
    opc__items_append(o->items, &o->dead_first, &o->dead_last, i);
    o->dead++;
}

/* A dead letter was taken, dropped or queued anew, and the store knows. From o->dead_first the
   `next` of the entries leads through all. */
OPC__FN void opc__outbox_dead_remove(opc__outbox *o, uint32_t i) {
    OPCOMMS_ASSERT(opc__items_at(o->items, i)->kind == OPC__KIND_DEAD);
    OPCOMMS_ASSERT(o->dead > 0);
    opc__items_unlink(o->items, &o->dead_first, &o->dead_last, i);
    o->dead--;
    o->bytes -= opc__items_at(o->items, i)->bytes;
    opc__items_remove(o->items, i);
}

/* The queued entry after i, OPC__ITEMS_NONE: the first; destination after destination, oldest
   first in each; or OPC__ITEMS_NONE. */
OPC__FN uint32_t opc__outbox_each(const opc__outbox *o, uint32_t i) {
    uint32_t d = 0, r = OPC__ITEMS_NONE;
    if (i != OPC__ITEMS_NONE) {
        const opc__entry *e = opc__items_at(o->items, i);
        if (e->next != OPC__ITEMS_NONE) return e->next;
        d = e->box + 1u;
        r = opc__outbox_era(o, e)->next;
    } else if (o->dests_count > 0) {
        r = o->dests[d++].era_first;
    }
    for (;;) {
        for (; r != OPC__ITEMS_NONE; r = o->eras[r].next) {
            if (o->eras[r].count > 0) return o->eras[r].first;
        }
        if (d >= o->dests_count) return OPC__ITEMS_NONE;
        r = o->dests[d++].era_first;
    }
}

/* The queued entry of the lowest number above `uid`, or OPC__ITEMS_NONE. Walks the queues. */
OPC__FN uint32_t opc__outbox_above(const opc__outbox *o, uint64_t uid) {
    uint32_t d, r, i, best = OPC__ITEMS_NONE;
    uint64_t least = UINT64_MAX;
    for (d = 0; d < o->dests_count; d++) {
        for (r = o->dests[d].era_first; r != OPC__ITEMS_NONE; r = o->eras[r].next) {
            const opc__era *a = &o->eras[r];
            if (a->count == 0 || opc__items_at(o->items, a->last)->uid <= uid) continue;
            for (i = a->first; opc__items_at(o->items, i)->uid <= uid;) {
                i = opc__items_at(o->items, i)->next;
            }
            if (opc__items_at(o->items, i)->uid < least) {
                least = opc__items_at(o->items, i)->uid;
                best = i;
            }
        }
    }
    return best;
}

/* ---- sending ---- */

/* Once a step, before opc__outbox_due. `visible`: how far our own store is durable, or under weaker
   modes written. Returns how many destinations are READY: so many calls of opc__outbox_due see each
   once. */
OPC__FN uint32_t opc__outbox_tick(opc__outbox *o, uint64_t now_us, uint64_t visible) {
    uint32_t d, next;
    while (o->timers.count > 0 && (uint64_t)opc__heap_at(&o->timers, 0)->key <= now_us) {
        opc__outbox_wake(o, opc__heap_at(&o->timers, 0)->id);
    }
    if (visible > o->visible) {
        o->visible = visible;
        for (d = o->fresh.first; d != OPC__ITEMS_NONE; d = next) {
            next = o->dests[d].next;
            opc__outbox_settle(o, d);
        }
    }
    return o->ready.count;
}

/* The destination whose turn it is, or OPC__ITEMS_NONE; its next turn comes after all others. It
   has something to send (opc__outbox_next), or `ask` is set. */
OPC__FN uint32_t opc__outbox_due(opc__outbox *o) {
    uint32_t d = o->ready.first;
    if (d == OPC__ITEMS_NONE) return d;
    opc__outbox_leave(o, d);
    opc__outbox_enter(o, d, OPC__OUTBOX_AT_READY);
    return d;
}

/* Until when nothing is due if nothing happens: 0: something is now; UINT64_MAX: for ever. */
OPC__FN uint64_t opc__outbox_deadline(const opc__outbox *o) {
    if (o->ready.count > 0) return 0;
    if (o->timers.count == 0) return UINT64_MAX;
    return (uint64_t)opc__heap_at(&o->timers, 0)->key;
}

/* The entry to send to a destination now, or OPC__ITEMS_NONE. It stays the same until
   opc__outbox_sent is called for it, or it leaves the queue. */
OPC__FN uint32_t opc__outbox_next(const opc__outbox *o, uint32_t d) {
    uint32_t i = opc__outbox_cursor(o, d);
    if (i == OPC__ITEMS_NONE) return i;
    return opc__outbox_position(o, opc__items_at(o->items, i)) <= o->visible ? i : OPC__ITEMS_NONE;
}

/* What opc__outbox_next gave is under way. `how`: OPC__TRIED_. */
OPC__FN void opc__outbox_sent(opc__outbox *o, uint32_t i, unsigned how) {
    opc__entry *e = opc__items_at(o->items, i);
    opc__era *a = opc__outbox_era(o, e);
    OPCOMMS_ASSERT(a->cursor == i);
    e->tried = (e->tried | how) & 3u;
    a->cursor = e->next;
    if (e->uid > a->sent) a->sent = e->uid;
    o->dests[e->box].under_way++;
    if (e->term) opc__heap_drop(&o->ends, (uint32_t)e->position);
    opc__outbox_settle(o, e->box);
}

/* The connection is gone, by nobody's fault: what was under way is sent again on the next. */
OPC__FN void opc__outbox_rewind(opc__outbox *o, uint32_t d) {
    opc__dest *x = &o->dests[d];
    uint32_t r, i;
    for (r = x->era_first; r != OPC__ITEMS_NONE; r = o->eras[r].next) {
        opc__era *a = &o->eras[r];
        i = x->terms > 0 ? a->todo : a->cursor;
        while (i != a->cursor) {
            opc__outbox_end_set(o, i);
            i = opc__items_at(o->items, i)->next;
        }
        a->cursor = a->todo;
        a->got = a->todo;
        a->received = a->durable;
        if (a->first != a->todo) x->ask = 1;
    }
    x->under_way = 0;
    if (x->at == OPC__OUTBOX_AT_PARKED) opc__outbox_wake(o, d); /* what it waited for is gone */
    opc__outbox_settle(o, d);
}

/* The entry after i, OPC__ITEMS_NONE: the first, for which the end of the present attempt counts as
   one: those under way, or if there are none the oldest; or OPC__ITEMS_NONE. */
OPC__FN uint32_t opc__outbox_trying(const opc__outbox *o, uint32_t d, uint32_t i) {
    const opc__dest *x = &o->dests[d];
    uint32_t r = x->era_first;
    if (i != OPC__ITEMS_NONE) {
        const opc__entry *e = opc__items_at(o->items, i);
        if (x->under_way == 0) return OPC__ITEMS_NONE;
        i = e->next;
        r = e->who & 0xffffu;
        if (i != OPC__ITEMS_NONE && i != o->eras[r].cursor) return i;
        r = o->eras[r].next;
    }
    for (; r != OPC__ITEMS_NONE; r = o->eras[r].next) {
        const opc__era *a = &o->eras[r];
        if (a->todo == OPC__ITEMS_NONE) continue;
        if (x->under_way == 0 || a->todo != a->cursor) return a->todo;
    }
    return OPC__ITEMS_NONE;
}

/* An attempt failed: it counts for opc__outbox_trying, everything is sent again, and not before a
   time between half of and the whole of the present backoff, which doubles. `random`: 32 bits.
   opc__outbox_giveup then has those whose attempts are used up. */
OPC__FN void opc__outbox_failed(opc__outbox *o, uint32_t d, int32_t code, uint64_t now_us,
                                uint32_t random) {
    opc__dest *x = &o->dests[d];
    uint64_t whole = (uint64_t)o->limits.retry_min_ms * 1000u;
    uint64_t most = (uint64_t)o->limits.retry_max_ms * 1000u, half;
    uint32_t i = OPC__ITEMS_NONE, k;
    OPCOMMS_ASSERT(code < 0);
    x->code = code;
    if (x->count == 0) return;
    while ((i = opc__outbox_trying(o, d, i)) != OPC__ITEMS_NONE) {
        opc__entry *e = opc__items_at(o->items, i);
        if (opc__outbox_attempts(e) < 0xffffu) e->who += 0x10000u;
        opc__outbox_end_set(o, i);
    }
    opc__outbox_rewind(o, d);
    for (k = 0; k < x->doublings && whole < most; k++) whole *= 2;
    if (whole > most) whole = most;
    if (x->doublings < 32) x->doublings++;
    half = whole / 2;
    x->retry_us = now_us + whole - ((half >> 32) * random + ((half & 0xffffffffu) * random >> 32));
    opc__outbox_leave(o, d);
    opc__outbox_enter(o, d, OPC__OUTBOX_AT_BACKOFF);
}

/* An attempt succeeded: there is a connection, and it carries messages. */
OPC__FN void opc__outbox_ok(opc__outbox *o, uint32_t d) {
    opc__dest *x = &o->dests[d];
    x->doublings = 0;
    x->retry_us = 0;
    x->ask = 0;
    if (x->at == OPC__OUTBOX_AT_BACKOFF) {
        opc__outbox_wake(o, d);
    } else {
        opc__outbox_settle(o, d);
    }
}

/* The next that must become a dead letter, or OPC__ITEMS_NONE: its attempts are used up or its time
   has passed. The caller tells the store, then calls opc__outbox_kill with *code. */
OPC__FN uint32_t opc__outbox_giveup(const opc__outbox *o, int64_t now_s, int32_t *code) {
    const opc__heap_node *top;
    const opc__term *t;
    if (o->ends.count == 0) return OPC__ITEMS_NONE;
    top = opc__heap_at(&o->ends, 0);
    if (top->key > now_s) return OPC__ITEMS_NONE;
    t = (const opc__term *)opc__pieces_at(&o->terms, top->id);
    *code = OPCOMMS_E_TIMEOUT;
    if (top->key == INT64_MIN) {
        *code = o->dests[opc__items_at(o->items, t->entry)->box].code;
        if (*code >= 0) *code = OPCOMMS_E_CONNECT; /* not known any more */
    }
    return t->entry;
}

/* When opc__outbox_giveup has something to say next; INT64_MAX: never. */
OPC__FN int64_t opc__outbox_giveup_s(const opc__outbox *o) {
    return o->ends.count > 0 ? opc__heap_at(&o->ends, 0)->key : INT64_MAX;
}

/* ---- acknowledgements ---- */

/* All messages of an era up to `number` have reached a level, which includes those below. Numbers
   beyond what may have been sent are cut down to that. */
OPC__FN void opc__outbox_acked(opc__outbox *o, uint32_t era, int level, uint64_t number) {
    opc__era *a = &o->eras[era];
    if (number > a->sent) number = a->sent;
    if (level >= OPC__LEVEL_CONSUMED && number > a->consumed) a->consumed = number;
    if (level >= OPC__LEVEL_DURABLE && number > a->durable) a->durable = number;
    if (number > a->received) a->received = number;
}

/* Entry i is durable at the receiver and waits to be consumed; nothing but that ends it. */
OPC__FN void opc__outbox_wait(opc__outbox *o, opc__era *a, uint32_t i) {
    const opc__entry *e = opc__items_at(o->items, i);
    OPCOMMS_ASSERT(a->todo == i);
    opc__outbox_term_drop(o, i);
    if (a->cursor == i) {
        a->cursor = e->next; /* stored there on an earlier connection: not sent again */
    } else {
        o->dests[e->box].under_way--;
    }
    if (a->got == i) a->got = e->next;
    a->todo = e->next;
}

/* After opc__outbox_acked, call until OPC__ITEMS_NONE: the entries whose state changed, each with
   its new one. OVER: the caller tells the store, then calls opc__outbox_remove; until then the same
   is given again. RECEIVED is told for messages that asked for this level alone; they stay queued
   until they are durable. */
OPC__FN uint32_t opc__outbox_progress(opc__outbox *o, uint32_t d, int *state) {
    uint32_t r, i;
    for (r = o->dests[d].era_first; r != OPC__ITEMS_NONE; r = o->eras[r].next) {
        opc__era *a = &o->eras[r];
        *state = OPC__OUTBOX_OVER;
        if (a->first != a->todo && opc__items_at(o->items, a->first)->uid <= a->consumed) {
            return a->first;
        }
        *state = OPC__OUTBOX_RECEIVED;
        while (a->got != OPC__ITEMS_NONE && a->got != a->cursor) {
            const opc__entry *e = opc__items_at(o->items, a->got);
            if (e->uid > a->received) break;
            i = a->got;
            a->got = e->next;
            if (e->level == OPC__LEVEL_RECEIVED && e->uid > a->durable) return i;
        }
        if (a->todo != OPC__ITEMS_NONE) {
            const opc__entry *e = opc__items_at(o->items, a->todo);
            if (e->uid > a->durable) continue;
            i = a->todo;
            *state = OPC__OUTBOX_OVER;
            if (e->level != OPC__LEVEL_CONSUMED || e->uid <= a->consumed) return i;
            opc__outbox_wait(o, a, i);
            opc__outbox_settle(o, d);
            *state = OPC__OUTBOX_DURABLE;
            return i;
        }
    }
    return OPC__ITEMS_NONE;
}

/* >>peer ==== L3 ==== what a peer is made of; its log lines; when its store writes and syncs */

#define OPC__PEER_ROUNDS 8u         /* rounds of socket work for one connection in one step */
#define OPC__PEER_ACCEPTS 16u       /* connections accepted in one step */
#define OPC__PEER_LINGER_US 500000u /* how long a closed connection waits for the peer's end */
#define OPC__PEER_STOP_US 2000000u  /* how long a stop waits for work under way */
#define OPC__PEER_MESSAGES 64u      /* handles of messages handed out, made at once */
#define OPC__PEER_BLOCKS 256u       /* and so many times at most */
#define OPC__PEER_LOG_LINES 8u
#define OPC__LINK_CHECK_US 30000000u /* silence before which a kept connection is not asked first */
#define OPC__LINK_CHECK_WAIT_US 2000000u /* and how long it may take to say that it lives */
#define OPC__LINK_SILENT_US 2000000u /* after which a call that gives up ends the connection */

/* A queued message on its way by tarpc. */
typedef struct opc__mail {
    int busy;
    uint32_t dest;
    uint64_t uid;
    opc__call call;
} opc__mail;

/* A native conversation, see >>flow. */
#define OPC__FLOW_CHANNELS 256u /* of each side, at most */
#define OPC__FLOW_REFUSALS 16u  /* owed at once; reading stops when all are taken */
#define OPC__FLOW_RECORD 4096u  /* bytes that fit an empty TLS record of ours */
#define OPC__FLOW_CHUNK 16384u  /* most payload in one frame that we take */

/* Everything up to `number` is durable once `position` is visible. */
typedef struct opc__mark {
    uint64_t number;
    uint64_t position;
} opc__mark;

/* A channel that the peer has opened. */
typedef struct opc__flow_in {
    int used;
    int open; /* DATA is taken; otherwise dropped */
    uint8_t stream;
    uint8_t from_id;
    uint8_t dest_id;
    uint8_t wants;
    int tell; /* STATE is owed */
    int32_t code;
    uint32_t numbers; /* its stream, see >>numbers */
    int counted;      /* which it holds */
    uint64_t known_at; /* STATE waits until this position is durable: it tells what there is */
    int all;          /* a later opening has been seen: all of this one has come */
    uint32_t box;
    uint8_t *dest;
    uint32_t dest_len;
    opc__epoch epoch;
    uint64_t routes; /* generation of the routing table that let it pass */
    uint64_t last;   /* number of the last DATA */
    uint64_t received, durable, consumed; /* as told */
    opc__mark sealed; /* goes with the flush under way */
    opc__mark fresh;  /* goes with the next one */
    uint64_t messages, bytes; /* taken since OPEN */
    uint64_t credit_messages, credit_bytes;
    uint64_t consumed_seen; /* opcomms_peer.consumptions when `consumed` was looked up */
    /* the message under way, in chunks */
    int put_open;
    int dropping; /* it is a duplicate or refused: the rest is only counted */
    uint32_t put;
    uint8_t flags; /* of its DATA */
    uint64_t number;
    uint64_t total;
    uint64_t got;
} opc__flow_in;

enum { OPC__FLOW_FREE = 0, OPC__FLOW_OPENING, OPC__FLOW_ASKED, OPC__FLOW_OPEN, OPC__FLOW_CLOSING };

/* A channel of ours. */
typedef struct opc__flow_out {
    int state;
    uint8_t stream;
    uint8_t from_id;
    uint8_t dest_id;
    uint8_t wants;
    uint32_t dest;  /* QUEUE: of the outbox */
    char text[65];  /* DIRECT: the destination */
    opc__epoch epoch;
    uint64_t messages, bytes; /* sent since OPEN */
    uint64_t credit_messages, credit_bytes;
    uint64_t last;      /* number of the last message begun */
    uint64_t settled;   /* acknowledged as durable */
    uint64_t seen;      /* what the peer had of this stream when it opened the channel */
    /* the message under way, in chunks */
    int under_way;
    int abort;         /* half of it is out and nobody wants the rest: that is to be told */
    uint32_t entry;    /* QUEUE */
    opc__call *call;   /* DIRECT */
    uint64_t number;
    uint64_t total;
    uint64_t sent;
} opc__flow_out;

typedef struct opc__refusal {
    uint32_t channel;
    int32_t code;
    uint64_t number;
} opc__refusal;

typedef struct opc__flow {
    struct opcomms_peer *peer;
    struct opc__slot *slot;
    int hello_sent;
    int hello_got;
    int greeted; /* and whoever waited for that knows */
    int32_t bye; /* the reason to end, told before */
    int bye_told;
    int serves;  /* the peer takes OPEN */
    uint32_t chunk;
    uint64_t message_max;
    opc__flow_in *in;
    uint32_t in_cap;
    opc__flow_out *out;
    uint32_t out_cap;
    uint32_t turn;
    int crowded; /* a destination waits for a channel: an idle one gives way */
    opc__refusal refusals[OPC__FLOW_REFUSALS];
    uint32_t refusals_count;
    int pong;
    uint8_t pong_bytes[8];
    opc__call *calls;   /* to be sent, ascending by number */
    opc__call *waiting; /* sent */
    opc__flow_in *receiving; /* whose payload is coming in, or NULL: dropped */
    uint64_t heard_seen;
    uint64_t heard_us;       /* when the peer was heard last */
    uint64_t await_us;       /* since when we wait for something; 0: we do not */
    uint64_t await_until_us; /* when to look again */
    int ping;                /* one is to be sent */
    int pinged;
    opc__native_in input;
} opc__flow;

/* A connection that the step works on: an accepted one, or one of ours. */
typedef struct opc__slot {
    intptr_t sock;
    opcomms_address address;
    int client;        /* ours: to the key `hash` */
    int connecting;    /* TCP is not there yet */
    uint8_t hash[32];  /* client */
    int os_code;       /* client: of a failed connect */
    int over;               /* whoever waited for it has learned that it is */
    opc__flow *flow; /* once the native protocol is agreed on */
    opc__mail *mail;   /* client, tarpc: for messages of the outbox, one at a time */
    uint64_t since_us;
    uint64_t active_us;
    uint64_t activity_seen;
    uint64_t linger_until_us; /* != 0: over, waiting for the peer's end */
    int admitted;             /* handshake done and admitted */
    uint32_t rate;            /* hint for opc__rates_take */
    int events_ready;         /* POLL_IN/OUT seen in this step */
    struct opcomms_peer *peer;
    opc__conn conn;
} opc__slot;

/* A caller that waits while another one does the socket work. */
typedef struct opc__sleeper {
    struct opc__sleeper *next;
    const opc__call *call;
    opc__cond wake;
} opc__sleeper;

/* A connection of ours to (hash, address). Everything below `lock` is guarded by it; the thread
   that has set `owned` does the socket work, also while the lock is open to wait. Lock order:
   node, then link, then list. */
typedef struct opc__link {
    uint8_t hash[32];
    opcomms_address address;
    uint32_t refs; /* callers inside; guarded by the node's lock */
    uint64_t used_us;
    struct opcomms_peer *peer;
    opc__mutex lock;
    opc__sleeper *sleepers;
    int owned;
    opcomms_err kill; /* set to end all calls: stop or revocation */
    intptr_t sock;
    int connecting;
    int reused; /* this connection has answered before */
    int checking; /* `check`, a Ping of our own, is under way; the others wait for its answer */
    opc__call check;
    opc__session session; /* for the next connection */
    int doubt;  /* a call gave up, and nothing was heard since */
    uint64_t quiet_us; /* when it connected or was heard last */
    uint64_t heard_us; /* when it connected, was heard last, or was asked while not in doubt */
    uint64_t heard_seen;
    opc__conn conn;
} opc__link;

/* Which protocol a server spoke last. */
typedef struct opc__known {
    uint8_t hash[32];
    opcomms_address address;
    int tarpc;
} opc__known;

/* Where a message was queued to: texts that were read, and the allow list that was asked. */
typedef struct opc__peer_aim {
    char hash[65];
    char address[63];
    int named; /* there is an address */
    uint64_t list; /* generation of the allow list; 0: it is to be asked */
    uint8_t server[32];
    opcomms_address to;
} opc__peer_aim;

/* Buffers that native conversations borrow while they work, see >>tls. */
#define OPC__PEER_LENT 8u
typedef struct opc__peer_lent {
    uint8_t *p; /* NULL: not made yet */
    int out;
} opc__peer_lent;

#define OPC__STATE_MAX 4096u
#define OPC__PEER_AIMS 4u
#define OPC__PEER_KNOWN 64u
#define OPC__PEER_EVENTS 256u

struct opcomms_message {
    opcomms_peer *peer;
    uint32_t entry;
    int used;
    uint64_t uid;
    uint64_t bytes;
    uint32_t flags;
    uint8_t from_id;
    uint8_t from[32];
    opcomms_message *next_free;
};

typedef struct opc__peer_line {
    int level;
    char text[160];
} opc__peer_line;

struct opcomms_peer {
    opc__mem mem;
    const opcomms_platform *plat;
    opc__mutex lock;
    opc__cond changed; /* messages arrived, flush ended, callers left, state changed */
    opcomms_config cfg; /* defaults filled in; its strings are not used after new */
    opc__key key;
    opc__tls_ctx tls;
    uint8_t hash[32];
    char hash_text[65];
    opcomms_allow_list *allow;
    opcomms_routing_table *routes;
    uint64_t allow_seen;
    int allow_watched;
    opc__store *store;
    opc__items items;
    opc__mailbox mailbox;
    uint32_t own_box;
    uint64_t visible;
    uint32_t unflushed; /* messages committed since the last flush began */
    int unwritten;      /* acknowledgements could not be written because a flush ran */
    uint64_t flushed_us;
    int flushing;
    intptr_t listener;
    opcomms_address bound;
    intptr_t wake[2];
    int wake_ready;
    opc__slot **slots;
    uint32_t slots_count;
    opc__link **links;
    uint32_t links_count;
    uint64_t accept_again_us; /* after a failed accept, not before this time */
    opc__limit limit;
    opc__rates rates;
    opc__sessions sessions; /* with our clients */
    opc__sessions kept;     /* with servers to which no connection is open */
    uint64_t spans; /* the last span number: they tell requests apart, nothing depends on them */
    int more;   /* work is left although no socket says so */
    int signs;  /* handshake signatures made in this step */
    uint64_t step_us; /* when this step began */
    int stopping;
    int stopped;
    opcomms_err failed; /* first storage error */
    int os_code;
    uint32_t waiters;
    int pumping;
    opcomms_message **messages; /* blocks of OPC__PEER_MESSAGES */
    uint32_t messages_blocks;
    opcomms_message *messages_free;
    opc__peer_line lines[OPC__PEER_LOG_LINES];
    uint32_t lines_count;
    opcomms_pollfd *fds;
    opc__slot **fds_slot;
    opcomms_stats stats;
    opc__outbox outbox;
    opc__numbers numbers;
    int sleeping;  /* the thread that steps waits for events */
    int kicked;    /* and was told to look */
    int unsettled; /* acknowledgements of the outbox wait for room in the store */
    uint64_t sealing;      /* everything up to this position goes with the flush under way */
    uint64_t consumptions; /* counts messages that the program has acknowledged */
    int hungry;            /* the next of them is to be told to a sender, or lets it go on */
    int64_t wall_s;        /* at the beginning of this step */
    opc__call *directs;    /* of threads that wait, without a connection so far */
    uint64_t direct_first;  /* numbers of this opening are above it, */
    uint64_t direct_number; /* up to this one */
    opc__peer_aim aims[OPC__PEER_AIMS];
    opc__peer_lent lent[OPC__PEER_LENT];
    opc__known known[OPC__PEER_KNOWN];
    uint32_t known_next;
    opcomms_event events[OPC__PEER_EVENTS];
    uint32_t events_first;
    uint32_t events_count;
    uint64_t events_missed;
    int told_full; /* per cent of the log at which a warning was given last */
    uint8_t *state; /* the caller's record, of OPC__STATE_MAX bytes; NULL: never any */
    uint32_t state_len;
    int state_there;
    /* set by run: hands the sealed buffer to the flush thread; NULL: flush in the step */
    void (*flush_async)(struct opcomms_peer *p);
#if !defined(OPCOMMS_NO_THREADS)
    opc__thread thread;
    opc__thread flusher;
    opc__cond flush_start;
    int flush_wanted;
    int flush_quit;
    opc__thread_id callback_thread;
#endif
    int in_callback;
};

OPC__FN void opc__peer_say(opcomms_peer *p, int level, const char *text, const char *more) {
    opc__text t;
    opc__peer_line *line;
    if (p->cfg.log == NULL || p->lines_count >= OPC__PEER_LOG_LINES) return;
    line = &p->lines[p->lines_count++];
    line->level = level;
    opc__text_init(&t, line->text, sizeof line->text);
    opc__text_str(&t, text);
    if (more != NULL) opc__text_str(&t, more);
}

/* ---- events of the outbox ---- */

OPC__FN void opc__peer_event(opcomms_peer *p, uint64_t number, uint32_t state, opcomms_err code,
                             const uint8_t server[32]) {
    opcomms_event *e;
    if (p->events_count == OPC__PEER_EVENTS) {
        p->events_missed++;
        return;
    }
    e = &p->events[(p->events_first + p->events_count++) % OPC__PEER_EVENTS];
    memset(e, 0, sizeof *e);
    e->number = number;
    e->state = state;
    e->code = code;
    if (server != NULL) opc__str_hash_write(server, e->to);
    opc__cond_all(&p->changed);
}

/* Takes the oldest event; 0: there is none. */
OPC__FN int opc__peer_event_take(opcomms_peer *p, opcomms_event *out) {
    if (p->events_count == 0 && p->events_missed == 0) return 0;
    if (p->events_count == 0) {
        memset(out, 0, sizeof *out);
        out->state = OPCOMMS_STATE_MISSED;
        out->number = p->events_missed;
        p->events_missed = 0;
        return 1;
    }
    *out = p->events[p->events_first];
    p->events_first = (p->events_first + 1u) % OPC__PEER_EVENTS;
    p->events_count--;
    return 1;
}

/* Releases the lock, delivers the log lines that collected under it, and leaves it released. */
OPC__FN void opc__peer_unlock(opcomms_peer *p) {
    opc__peer_line lines[OPC__PEER_LOG_LINES];
    opcomms_event event;
    uint32_t i, n = p->lines_count;
    int told = p->cfg.event != NULL && (p->events_count > 0 || p->events_missed > 0);
    if (p->in_callback || (n == 0 && !told)) { /* what collects meanwhile waits for the next */
        opc__mutex_unlock(&p->lock);
        return;
    }
    memcpy(lines, p->lines, n * sizeof lines[0]);
    p->lines_count = 0;
    p->in_callback = 1;
#if !defined(OPCOMMS_NO_THREADS)
    p->callback_thread = opc__thread_self();
#endif
    opc__mutex_unlock(&p->lock);
    for (i = 0; i < n; i++) p->cfg.log(p->cfg.log_user, lines[i].level, lines[i].text);
    opc__mutex_lock(&p->lock);
    for (i = 0; told && i < OPC__PEER_EVENTS && opc__peer_event_take(p, &event); i++) {
        opc__mutex_unlock(&p->lock);
        p->cfg.event(p->cfg.event_user, &event);
        opc__mutex_lock(&p->lock);
    }
    p->in_callback = 0;
    opc__mutex_unlock(&p->lock);
}

/* Is the caller inside a callback of this peer? Called with the lock held. */
OPC__FN int opc__peer_inside(const opcomms_peer *p) {
#if !defined(OPCOMMS_NO_THREADS)
    return p->in_callback && opc__thread_is_self(p->callback_thread);
#else
    return p->in_callback;
#endif
}

OPC__FN uint64_t opc__peer_now(const opcomms_peer *p) { return p->plat->now_us(p->plat->user); }

/* How long ago something was: what another thread has done may be later than this step began. */
OPC__FN uint64_t opc__peer_since(uint64_t now_us, uint64_t then_us) {
    return now_us > then_us ? now_us - then_us : 0;
}

/* A number for a request's trace: spread over 64 bits from a random start, never zero. */
OPC__FN uint64_t opc__peer_span(opcomms_peer *p) {
    uint64_t z = p->spans += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return z != 0 ? z : 1;
}

/* Takes no lock: it is called from lists, under theirs, and from any thread. */
OPC__FN void opc__peer_wake(void *user) {
    opcomms_peer *p = (opcomms_peer *)user;
    p->plat->wake_signal(p->plat->user, p->wake);
}

/* Wakes the background thread if it sleeps, once. With the lock. */
OPC__FN void opc__peer_kick(opcomms_peer *p) {
    p->more = 1;
    if (!p->sleeping || p->kicked) return;
    p->kicked = 1;
    opc__peer_wake(p);
}

/* A buffer to lend; NULL: all are lent, or there is no memory. */
OPC__FN uint8_t *opc__peer_lend(opcomms_peer *p) {
    uint32_t i;
    for (i = 0; i < OPC__PEER_LENT && p->lent[i].out; i++) continue;
    if (i == OPC__PEER_LENT) return NULL;
    if (p->lent[i].p == NULL) {
        p->lent[i].p = (uint8_t *)opc__mem_raw(&p->mem, OPC__TLS_LENT_BYTES);
        if (p->lent[i].p == NULL) return NULL;
    }
    p->lent[i].out = 1;
    return p->lent[i].p;
}

/* It is back. Two are kept: what one conversation needs. */
OPC__FN void opc__peer_lent_back(opcomms_peer *p, const uint8_t *back) {
    uint32_t i;
    for (i = 0; i < OPC__PEER_LENT && back != NULL; i++) {
        if (p->lent[i].p != back) continue;
        p->lent[i].out = 0;
        if (i < 2) return;
        opc__mem_free(&p->mem, p->lent[i].p, OPC__TLS_LENT_BYTES);
        p->lent[i].p = NULL;
        return;
    }
}

OPC__FN void opc__peer_lent_free(opcomms_peer *p) {
    uint32_t i;
    for (i = 0; i < OPC__PEER_LENT; i++) {
        OPCOMMS_ASSERT(!p->lent[i].out);
        opc__mem_free(&p->mem, p->lent[i].p, OPC__TLS_LENT_BYTES);
        p->lent[i].p = NULL;
    }
}

OPC__FN void opc__peer_failed(opcomms_peer *p, opcomms_err rc) {
    if (p->failed != OPCOMMS_OK || rc == OPCOMMS_OK) return;
    p->failed = rc;
    opc__peer_say(p, OPCOMMS_LOG_ERROR, "storage failed: ", opc__err_text(rc));
}

/* ---- store ---- */

/* Recomputes up to where messages and answers are visible; wakes who waits for them. */
OPC__FN void opc__peer_visible(opcomms_peer *p) {
    uint64_t v = p->cfg.durability == OPCOMMS_DURABLE_ALWAYS ? p->store->c->durable(p->store)
                                                             : p->store->c->written(p->store);
    if (v == p->visible) return;
    OPCOMMS_ASSERT(v > p->visible);
    p->visible = v;
    p->more = 1;
    opc__cond_all(&p->changed);
}

/* Lets the disk work on the flush that has begun, in this thread, with the lock open meanwhile. */
OPC__FN void opc__peer_flush_here(opcomms_peer *p) {
    opcomms_err rc;
    p->flushing = 1;
    opc__mutex_unlock(&p->lock);
    rc = p->store->c->flush_run(p->store);
    opc__mutex_lock(&p->lock);
    rc = p->store->c->flush_end(p->store, rc);
    p->flushing = 0;
    p->stats.syncs++;
    opc__peer_failed(p, rc);
    opc__peer_visible(p);
    opc__cond_all(&p->changed);
}

/* The same in the thread that is there for it, or else here. */
OPC__FN void opc__peer_flush_somewhere(opcomms_peer *p) {
    if (p->flush_async == NULL) {
        opc__peer_flush_here(p);
    } else {
        p->flushing = 1;
        p->flush_async(p);
    }
}

/* Begins a flush; 0: there is nothing to flush, or it failed. */
OPC__FN int opc__peer_flush_begin(opcomms_peer *p) {
    opcomms_err rc;
    p->sealing = p->store->c->end(p->store);
    rc = p->store->c->flush_begin(p->store);
    if (rc == OPCOMMS_OK) p->unflushed = 0;
    if (rc != OPCOMMS_E_AGAIN) opc__peer_failed(p, rc);
    return rc == OPCOMMS_OK;
}

OPC__FN void opc__peer_flush_inline(opcomms_peer *p) {
    if (opc__peer_flush_begin(p)) opc__peer_flush_here(p);
}

/* Space is prepared when a step has nothing else for the disk. */
OPC__FN void opc__peer_ahead(opcomms_peer *p) {
    if (p->failed != OPCOMMS_OK || p->flushing || p->more || p->stopping) return;
    if (p->store->c->ahead_begin(p->store) == OPCOMMS_OK) opc__peer_flush_somewhere(p);
}

/* One piece of a compaction, when one is due or under way. */
OPC__FN void opc__peer_compact(opcomms_peer *p) {
    opcomms_err rc;
    int flush = 0;
    if (p->failed != OPCOMMS_OK || p->stopping) return;
    rc = p->store->c->compact(p->store, 0, &flush);
    if (rc == OPCOMMS_E_POISONED) {
        opc__peer_failed(p, rc);
    } else if (rc != OPCOMMS_OK && rc != OPCOMMS_E_AGAIN) {
        opc__peer_say(p, OPCOMMS_LOG_WARNING, "log: compaction given up for now: ",
                      opc__err_text(rc));
    }
    if (flush) {
        p->sealing = p->store->c->end(p->store);
        p->unflushed = 0;
        opc__peer_flush_somewhere(p);
    }
    if (rc == OPCOMMS_OK && !p->flushing) p->more = 1;
}

/* A warning while there is time: at 80, 90, 95 per cent, and again after it got better. */
OPC__FN void opc__peer_warn(opcomms_peer *p) {
    opc__space space;
    int full;
    p->store->c->space(p->store, &space);
    full = space.limit == 0 ? 0 : (int)(space.live / (space.limit / 100u + 1u));
    full = full >= 95 ? 95 : full >= 90 ? 90 : full >= 80 ? 80 : 0;
    if (full > p->told_full) {
        opc__peer_event(p, (uint64_t)full, OPCOMMS_STATE_LOG, OPCOMMS_E_FULL, NULL);
        opc__peer_say(p, OPCOMMS_LOG_WARNING, "log: what is kept fills most of log_bytes_max",
                      NULL);
    }
    p->told_full = full;
}

/* Writes or syncs what the durability asks for now. */
OPC__FN void opc__peer_flush(opcomms_peer *p, uint64_t now_us) {
    int due = p->cfg.durability == OPCOMMS_DURABLE_ALWAYS;
    opcomms_err rc;
    if (p->failed != OPCOMMS_OK || p->flushing) return;
    opc__peer_visible(p); /* a memory store is durable at once */
    if (p->cfg.durability != OPCOMMS_DURABLE_ALWAYS) {
        rc = p->store->c->write(p->store);
        if (rc != OPCOMMS_OK) opc__peer_failed(p, rc);
        opc__peer_visible(p);
        due = p->cfg.durability == OPCOMMS_DURABLE_INTERVAL &&
              now_us - p->flushed_us >= (uint64_t)p->cfg.sync_interval_ms * 1000u;
    } else if (p->unflushed == 0 && p->store->c->room(p->store) >= OPC__CONN_ROOM) {
        /* Only acknowledgements and fragments wait: they go with the next sync. Those of messages
           that the program consumed while the disk was busy are at least written. */
        rc = p->unwritten ? p->store->c->write(p->store) : OPCOMMS_OK;
        p->unwritten = 0;
        opc__peer_failed(p, rc);
        return;
    }
    if (!due || p->store->c->durable(p->store) >= p->store->c->end(p->store)) return;
    p->flushed_us = now_us;
    if (p->unflushed > 1) {
        if (opc__peer_flush_begin(p)) opc__peer_flush_somewhere(p);
    } else { /* one alone is there sooner without waking another thread */
        opc__peer_flush_inline(p);
    }
}

/* ---- calls that wait for a native answer ---- */

OPC__FN void opc__peer_answer(opcomms_peer *p, opc__call *call, opcomms_err rc, const char *more) {
    (void)p;
    call->next = NULL;
    call->result = rc == OPCOMMS_OK ? rc : opc__err_set(&call->detail, rc, 0, more);
    call->done = 1;
    opc__cond_all(call->wake);
}

OPC__FN void opc__peer_fail(opcomms_peer *p, opc__call *call, opcomms_err rc, int os_code,
                            int tls_code, const char *more) {
    if (call->written && rc != OPCOMMS_E_ROLLBACK && rc != OPCOMMS_E_NOT_ALLOWED) {
        rc = OPCOMMS_E_UNKNOWN_OUTCOME;
    }
    opc__peer_answer(p, call, rc, more);
    call->detail.os_code = os_code;
    call->detail.tls_code = tls_code;
}

/* ---- what becomes of queued messages ---- */

/* Notes in the store what an attempt, the last one if `dead`, came to. */
OPC__FN opcomms_err opc__peer_tried(opcomms_peer *p, const opc__entry *e, uint32_t attempts,
                                    opcomms_err code, int dead) {
    uint64_t position = 0;
    opc__try t;
    memset(&t, 0, sizeof t);
    t.uid = e->uid;
    t.attempts = attempts;
    t.code = code;
    t.tried = e->tried;
    t.dead = dead;
    t.time_s = p->wall_s;
    return p->store->c->tried(p->store, &t, &position);
}

/* Entry i becomes a dead letter; 0: the store has no room for that now. */
OPC__FN int opc__peer_kill(opcomms_peer *p, uint32_t i, opcomms_err code) {
    const opc__entry *e = opc__items_at(&p->items, i);
    opcomms_err rc = opc__peer_tried(p, e, opc__outbox_attempts(e), code, 1);
    if (rc == OPCOMMS_E_AGAIN) return 0;
    if (rc != OPCOMMS_OK) {
        opc__peer_failed(p, rc);
        return 0;
    }
    p->unflushed++;
    opc__peer_event(p, e->uid, OPCOMMS_STATE_DEAD, code, p->outbox.dests[e->box].server);
    opc__outbox_kill(&p->outbox, i, code, p->wall_s);
    return 1;
}

/* Takes note of what the receiver has acknowledged for a destination. */
OPC__FN void opc__peer_progress(opcomms_peer *p, uint32_t d) {
    const uint8_t *server = p->outbox.dests[d].server;
    uint32_t i;
    int state = 0;
    while ((i = opc__outbox_progress(&p->outbox, d, &state)) != OPC__ITEMS_NONE) {
        const opc__entry *e = opc__items_at(&p->items, i);
        uint64_t position = 0;
        opcomms_err rc;
        if (state != OPC__OUTBOX_OVER) {
            opc__peer_event(p, e->uid, state == OPC__OUTBOX_RECEIVED ? OPCOMMS_STATE_RECEIVED
                                                                     : OPCOMMS_STATE_DURABLE,
                            OPCOMMS_OK, server);
            continue;
        }
        rc = p->store->c->done(p->store, opc__items_ref(&p->items, i), e->uid,
                               OPC__DONE_DELIVERED, &position);
        if (rc == OPCOMMS_E_AGAIN) {
            p->unsettled = 1; /* goes on in a later step */
            return;
        }
        if (rc != OPCOMMS_OK) {
            opc__peer_failed(p, rc);
            return;
        }
        p->stats.delivered++;
        p->stats.messages_out++;
        opc__peer_event(p, e->uid, e->level == OPC__LEVEL_CONSUMED ? OPCOMMS_STATE_CONSUMED
                                                                   : OPCOMMS_STATE_DURABLE,
                        OPCOMMS_OK, server);
        opc__outbox_remove(&p->outbox, i);
    }
}

/* Everything of one opening of our log up to `number` has reached a level. */
OPC__FN void opc__peer_acked(opcomms_peer *p, uint32_t d, const opc__epoch *epoch, uint64_t number,
                             int level) {
    uint32_t era = opc__outbox_era_find(&p->outbox, d, epoch);
    if (era == OPC__ITEMS_NONE) return;
    opc__outbox_acked(&p->outbox, era, level, number);
    opc__outbox_ok(&p->outbox, d);
    opc__peer_progress(p, d);
}

/* An attempt for this destination has failed. What was tried is noted in the log for the oldest and
   for those whose attempts are limited. */
OPC__FN void opc__peer_attempt_failed(opcomms_peer *p, uint32_t d, opcomms_err code) {
    uint32_t i = OPC__ITEMS_NONE, n = 0;
    p->stats.attempts_failed++;
    while ((i = opc__outbox_trying(&p->outbox, d, i)) != OPC__ITEMS_NONE) {
        const opc__entry *e = opc__items_at(&p->items, i);
        if (n++ > 0 && !e->term) continue;
        /* Without room it is not noted: after a crash it was an attempt less. */
        (void)opc__peer_tried(p, e, opc__outbox_attempts(e) + 1u, code, 0);
    }
    opc__outbox_failed(&p->outbox, d, code, opc__peer_now(p), (uint32_t)opc__peer_span(p));
}

/* The receiver will never take this one. */
OPC__FN void opc__peer_refused(opcomms_peer *p, uint32_t d, uint64_t number, opcomms_err why) {
    uint32_t i = opc__items_find(&p->items, number);
    if (i == OPC__ITEMS_NONE || opc__items_at(&p->items, i)->kind != OPC__KIND_OUT ||
        opc__items_at(&p->items, i)->box != d) {
        return; /* cancelled meanwhile */
    }
    (void)opc__peer_kill(p, i, why);
}

/* Entry i cannot be sent: its payload is lost, or too large for the receiver. */
OPC__FN void opc__peer_unreadable(opcomms_peer *p, uint32_t i, opcomms_err why) {
    if (!opc__peer_kill(p, i, why)) p->more = 1;
}

/* The channel of a destination is gone. why OPCOMMS_OK: nobody's fault. */
OPC__FN void opc__peer_unserved(opcomms_peer *p, uint32_t d, opcomms_err why) {
    opc__dest *x = &p->outbox.dests[d];
    OPCOMMS_ASSERT(x->held > 0);
    x->held--;
    if (why != OPCOMMS_OK && !p->stopping && p->store != NULL) {
        opc__peer_attempt_failed(p, d, why);
    } else {
        opc__outbox_rewind(&p->outbox, d);
        opc__outbox_wake(&p->outbox, d);
    }
}

/* The receiver has shut the channel. Its routing table refuses for good, everything else may change
   by itself. */
OPC__FN void opc__peer_shut(opcomms_peer *p, uint32_t d, opcomms_err why) {
    if (why == OPCOMMS_E_ROUTE || why == OPCOMMS_E_INVAL) {
        uint32_t i = opc__outbox_trying(&p->outbox, d, OPC__ITEMS_NONE);
        opc__peer_unserved(p, d, OPCOMMS_OK);
        if (i != OPC__ITEMS_NONE) (void)opc__peer_kill(p, i, why);
        return;
    }
    opc__peer_unserved(p, d, why);
}

/* A connection to (server, address) could not be made: for all destinations that wait for it. */
OPC__FN void opc__peer_unreached(opcomms_peer *p, const uint8_t server[32],
                                 const opcomms_address *address, opcomms_err why) {
    uint32_t d = opc__outbox_of_server(&p->outbox, server, OPC__ITEMS_NONE);
    for (; d != OPC__ITEMS_NONE; d = opc__outbox_of_server(&p->outbox, server, d)) {
        const opc__dest *x = &p->outbox.dests[d];
        if (x->held == 0 && x->at == OPC__OUTBOX_AT_PARKED && x->address.family != 0 &&
            opc__id_same(&x->address, address)) {
            opc__peer_attempt_failed(p, d, why);
        }
    }
}

/* Something has changed about the connections to a server. */
OPC__FN void opc__peer_rouse(opcomms_peer *p, const uint8_t server[32]) {
    uint32_t d = opc__outbox_of_server(&p->outbox, server, OPC__ITEMS_NONE);
    for (; d != OPC__ITEMS_NONE; d = opc__outbox_of_server(&p->outbox, server, d)) {
        opc__outbox_wake(&p->outbox, d);
    }
    p->more = 1;
}

/* Was this said before what is on record, on a connection that began earlier? What a process that
   is gone has sent may arrive when its successor has long been heard. */
OPC__FN int opc__peer_overtaken(const opcomms_peer *p, const uint8_t peer[32],
                                const opc__hello *h, uint64_t since_us) {
    uint32_t i = opc__numbers_peer_find(&p->numbers, peer);
    const opc__numbers_peer *n = i != OPC__NUMBERS_NONE ? &p->numbers.peers[i] : NULL;
    return n != NULL && n->count > 0 && since_us < n->since_us && h->now.counter != 0 &&
           h->now.counter < n->list[n->count - 1].counter;
}

/* Stores anew what is on record of a peer. */
OPC__FN opcomms_err opc__peer_note(opcomms_peer *p, const uint8_t peer[32], uint64_t *position) {
    uint8_t note[OPC__NOTE_MAX];
    size_t n = opc__numbers_peer_note(&p->numbers, peer, note);
    opcomms_err rc = p->store->c->note(p->store, OPC__NOTE_PEER, note, n, position);
    if (rc == OPCOMMS_OK) p->unflushed++;
    return rc;
}

/* Compares what a peer says of its log and ours, on a connection begun at since_us, with what is on
   record. */
OPC__FN opcomms_err opc__peer_judge(opcomms_peer *p, const uint8_t peer[32], const opc__hello *h,
                                    uint64_t since_us) {
    uint64_t position = 0;
    int changed = 0, whose = 0;
    uint32_t i;
    opcomms_err rc = OPCOMMS_E_CLOSED;
    if (opc__peer_overtaken(p, peer, h, since_us)) return rc;
    rc = opc__numbers_judge(&p->numbers, peer, h, &changed, &whose);
    i = opc__numbers_peer_find(&p->numbers, peer);
    if (i != OPC__NUMBERS_NONE && since_us > p->numbers.peers[i].since_us) {
        p->numbers.peers[i].since_us = since_us;
    }
    if (changed) { /* also when it stops: why is to be remembered */
        opcomms_err noted = opc__peer_note(p, peer, &position);
        if (rc == OPCOMMS_OK) rc = noted;
    }
    if (rc == OPCOMMS_E_ROLLBACK) {
        char text[65];
        opc__str_hash_write(peer, text);
        p->stats.rollbacks++;
        opc__peer_say(p, OPCOMMS_LOG_ERROR,
                      (whose & OPC__NUMBERS_OURS) ? "our own log went back, says "
                                                 : "an older log came back: that of ", text);
        opc__peer_event(p, 0, OPCOMMS_STATE_ROLLBACK, rc, peer);
        return rc;
    }
    return rc;
}

/* >>flow ==== L3 ==== a native conversation: channels, windows, acknowledgements */

OPC__FN opc__flow_in *opc__flow_in_at(opc__flow *f, uint32_t channel) {
    return channel > 0 && channel <= f->in_cap && f->in[channel - 1u].used
               ? &f->in[channel - 1u] : NULL;
}

OPC__FN opc__flow_out *opc__flow_out_at(opc__flow *f, uint32_t channel) {
    return channel > 0 && channel <= f->out_cap && f->out[channel - 1u].state != OPC__FLOW_FREE
               ? &f->out[channel - 1u] : NULL;
}

OPC__FN void opc__flow_drop_put(opc__flow *f, opc__flow_in *ch) {
    if (ch->put_open) f->peer->store->c->abort(f->peer->store, ch->put);
    ch->put_open = 0;
    ch->dropping = 0;
    ch->total = 0;
}

/* ---- receiving: channels ---- */

/* Why the peer may not put messages into this mailbox; OPCOMMS_OK: it may. */
OPC__FN opcomms_err opc__flow_routes(opc__flow *f, opc__flow_in *ch) {
    opcomms_peer *p = f->peer;
    uint64_t now = opc__route_generation(p->routes);
    char from[65];
    if (ch->routes == now) return OPCOMMS_OK;
    opc__str_hash_write(opc__tls_peer(&f->slot->conn.tls), from);
    if ((!opc__mailbox_is_own(&p->mailbox, ch->dest, ch->dest_len) && p->cfg.mailboxes_max == 0) ||
        !opc__route_can(p->routes, (const uint8_t *)from, 64, ch->from_id, ch->dest, ch->dest_len,
                        ch->dest_id)) {
        p->stats.routes_refused++;
        opc__peer_say(p, OPCOMMS_LOG_WARNING, "route refused for ", from);
        return OPCOMMS_E_ROUTE;
    }
    ch->routes = now;
    return OPCOMMS_OK;
}

/* The channel is closed by us: what comes on it is dropped until it is opened again. */
OPC__FN void opc__flow_shut(opc__flow *f, opc__flow_in *ch, opcomms_err why) {
    opc__flow_drop_put(f, ch);
    ch->open = 0;
    ch->tell = 1;
    ch->code = why;
}

OPC__FN void opc__flow_in_free(opc__flow *f, opc__flow_in *ch) {
    opc__flow_drop_put(f, ch);
    if (ch->counted) opc__numbers_close(&f->peer->numbers, ch->numbers);
    opc__mem_free(&f->peer->mem, ch->dest, (size_t)ch->dest_len + 1u);
    if (f->receiving == ch) f->receiving = NULL;
    memset(ch, 0, sizeof *ch);
}

/* Room for channel number `channel`; NULL: none. */
OPC__FN opc__flow_in *opc__flow_in_room(opc__flow *f, uint32_t channel) {
    uint32_t cap = f->in_cap == 0 ? 4 : f->in_cap;
    opc__flow_in *grown;
    if (channel == 0 || channel > OPC__FLOW_CHANNELS) return NULL;
    while (cap < channel) cap *= 2;
    if (cap > f->in_cap) {
        size_t receiving = f->receiving != NULL ? (size_t)(f->receiving - f->in) : 0;
        grown = (opc__flow_in *)opc__mem_array(&f->peer->mem, cap, sizeof *grown);
        if (grown == NULL) return NULL;
        if (f->in_cap > 0) memcpy(grown, f->in, f->in_cap * sizeof *grown);
        opc__mem_free(&f->peer->mem, f->in, f->in_cap * sizeof *grown);
        if (f->receiving != NULL) f->receiving = grown + receiving;
        f->in = grown;
        f->in_cap = cap;
    }
    return &f->in[channel - 1u];
}

/* How many more messages of this sender the mailbox takes. */
OPC__FN uint32_t opc__flow_free(const opc__flow *f, const opc__flow_in *ch) {
    const opcomms_peer *p = f->peer;
    uint32_t most = p->cfg.window_messages, free;
    free = opc__mailbox_free_for(&p->mailbox, ch->box, opc__tls_peer(&f->slot->conn.tls));
    if (ch->total != 0 && !ch->dropping && free > 0) free--; /* for the message under way */
    return free < most ? free : most;
}

OPC__FN void opc__flow_credit(const opc__flow *f, opc__flow_in *ch) {
    uint64_t messages = ch->messages + opc__flow_free(f, ch);
    uint64_t bytes = ch->bytes + f->peer->cfg.window_bytes;
    if (messages > ch->credit_messages) ch->credit_messages = messages;
    if (bytes > ch->credit_bytes) ch->credit_bytes = bytes;
}

OPC__FN opcomms_err opc__flow_on_open(opc__flow *f, const opc__native_event *e) {
    opcomms_peer *p = f->peer;
    const uint8_t *peer = opc__tls_peer(&f->slot->conn.tls);
    opc__flow_in *ch = opc__flow_in_room(f, e->channel);
    opcomms_err rc;
    if (ch == NULL) return OPCOMMS_E_LIMIT; /* ends the connection: it was asked for too much */
    if (ch->used) opc__flow_in_free(f, ch);
    ch->routes = UINT64_MAX;
    ch->dest = (uint8_t *)opc__mem_alloc(&p->mem, e->n + 1u);
    if (ch->dest == NULL) return OPCOMMS_E_NOMEM;
    memcpy(ch->dest, e->p, e->n);
    ch->dest_len = (uint32_t)e->n;
    ch->used = 1;
    ch->stream = e->stream;
    ch->from_id = e->from_id;
    ch->dest_id = e->dest_id;
    ch->wants = e->wants;
    ch->epoch = e->epoch;
    ch->tell = 1;
    ch->consumed_seen = UINT64_MAX; /* whatever was consumed before it was opened counts */
    rc = opc__flow_routes(f, ch);
    if (rc == OPCOMMS_OK) {
        rc = opc__mailbox_open(&p->mailbox, ch->dest, ch->dest_len, ch->dest_id, &ch->box);
    }
    if (rc == OPCOMMS_OK && !opc__numbers_announced(&p->numbers, peer, &ch->epoch)) {
        return OPCOMMS_E_PROTOCOL;
    }
    if (rc == OPCOMMS_OK) {
        opc__numbers_key key;
        memset(&key, 0, sizeof key);
        memcpy(key.sender, peer, 32);
        key.from_id = ch->from_id;
        key.dest_id = ch->dest_id;
        key.kind = ch->stream;
        key.epoch = ch->epoch;
        if (!opc__mailbox_is_own(&p->mailbox, ch->dest, ch->dest_len)) {
            key.dest = ch->dest;
            key.dest_len = ch->dest_len;
        }
        rc = opc__numbers_open(&p->numbers, &key, &ch->numbers);
        ch->counted = rc == OPCOMMS_OK;
    }
    if (rc == OPCOMMS_OK && p->failed != OPCOMMS_OK) rc = OPCOMMS_E_POISONED;
    ch->code = rc;
    ch->open = rc == OPCOMMS_OK;
    if (ch->open) {
        if (ch->stream == OPC__STREAM_QUEUE) {
            ch->durable = opc__numbers_seen(&p->numbers, ch->numbers, &ch->epoch);
            ch->all = ch->durable == 0 && opc__numbers_check(&p->numbers, ch->numbers, &ch->epoch,
                                                             1) == OPC__NUMBERS_DUPLICATE;
            ch->known_at = p->store->c->end(p->store);
            if (ch->known_at > p->visible) p->unflushed++;
        }
        opc__flow_credit(f, ch);
    }
    return OPCOMMS_OK;
}

/* ---- receiving: messages ---- */

/* What is taken up to `number` can be acknowledged when `position` is visible. */
OPC__FN void opc__flow_mark(opc__flow *f, opc__flow_in *ch, uint64_t number, uint64_t position) {
    if (ch->fresh.position != 0 && ch->fresh.position <= f->peer->sealing) {
        ch->sealed = ch->fresh; /* all before it went with an earlier flush */
    }
    ch->fresh.number = number;
    ch->fresh.position = position;
}

/* A number that is settled without being stored: a duplicate, or refused. What it repeats may not
   be durable yet. */
OPC__FN void opc__flow_skip(opc__flow *f, opc__flow_in *ch, uint64_t number) {
    opcomms_peer *p = f->peer;
    uint64_t end = p->store->c->end(p->store);
    if (end > p->visible) p->unflushed++;
    opc__flow_mark(f, ch, number, end);
}

OPC__FN void opc__flow_refuse(opc__flow *f, uint32_t channel, uint64_t number, opcomms_err code) {
    opc__refusal *r;
    OPCOMMS_ASSERT(f->refusals_count < OPC__FLOW_REFUSALS);
    r = &f->refusals[f->refusals_count++];
    r->channel = channel;
    r->number = number;
    r->code = code;
}

OPC__FN uint32_t opc__flow_in_number(const opc__flow *f, const opc__flow_in *ch) {
    return (uint32_t)(ch - f->in + 1);
}

/* Makes sure of a place in the mailbox; 0: there is none, and the channel is shut. */
OPC__FN int opc__flow_place(opc__flow *f, opc__flow_in *ch) {
    opcomms_peer *p = f->peer;
    opcomms_err rc = OPCOMMS_OK;
    if (!opc__mailbox_is(&p->mailbox, ch->box, ch->dest, ch->dest_len, ch->dest_id)) {
        rc = opc__mailbox_open(&p->mailbox, ch->dest, ch->dest_len, ch->dest_id, &ch->box);
    }
    if (rc == OPCOMMS_OK) {
        rc = opc__mailbox_reserve(&p->mailbox, ch->box, opc__tls_peer(&f->slot->conn.tls));
    }
    if (rc == OPCOMMS_OK) return 1;
    p->stats.queue_full++;
    opc__flow_shut(f, ch, rc);
    return 0;
}

/* Decides about a message from its head: 1: it is to be stored. Otherwise it is settled already, or
   the channel is shut. */
OPC__FN int opc__flow_wanted(opc__flow *f, opc__flow_in *ch, uint64_t number, uint64_t bytes) {
    opcomms_peer *p = f->peer;
    int verdict = opc__numbers_check(&p->numbers, ch->numbers, &ch->epoch, number);
    opcomms_err rc;
    if (verdict == OPC__NUMBERS_DUPLICATE) {
        p->stats.duplicates++;
        opc__flow_skip(f, ch, number);
        return 0;
    }
    if (verdict != OPC__NUMBERS_NEW || bytes > p->cfg.message_bytes_max) {
        opcomms_err why = OPCOMMS_E_LIMIT;
        if (verdict == OPC__NUMBERS_TOO_OLD) why = OPCOMMS_E_UNKNOWN_OUTCOME;
        if (verdict == OPC__NUMBERS_ROLLBACK) why = OPCOMMS_E_ROLLBACK;
        opc__flow_refuse(f, opc__flow_in_number(f, ch), number, why);
        opc__flow_skip(f, ch, number);
        return 0;
    }
    rc = opc__flow_routes(f, ch);
    if (rc == OPCOMMS_OK && p->failed != OPCOMMS_OK) rc = OPCOMMS_E_POISONED;
    if (rc == OPCOMMS_OK) return opc__flow_place(f, ch);
    opc__flow_shut(f, ch, rc);
    return 0;
}

/* The whole message lies in the put: stores it. */
OPC__FN opcomms_err opc__flow_store(opc__flow *f, opc__flow_in *ch, uint64_t number,
                                    uint64_t bytes, uint8_t flags) {
    opcomms_peer *p = f->peer;
    const uint8_t *peer = opc__tls_peer(&f->slot->conn.tls);
    opc__msg_meta meta;
    uint64_t uid = 0, ref = 0, position = 0;
    opcomms_err rc;
    if (opc__numbers_check(&p->numbers, ch->numbers, &ch->epoch, number) != OPC__NUMBERS_NEW) {
        p->stats.duplicates++; /* it has come over another connection meanwhile */
        opc__flow_skip(f, ch, number);
        return OPCOMMS_OK;
    }
    if (!opc__flow_place(f, ch)) return OPCOMMS_OK; /* what there was may be taken since its head */
    memset(&meta, 0, sizeof meta);
    memcpy(meta.from, peer, 32);
    meta.from_id = ch->from_id;
    meta.dest_id = ch->dest_id;
    if (flags & OPC__NATIVE_TEXT) meta.flags |= OPC__MSG_TEXT;
    if ((flags & OPC__NATIVE_UNCERTAIN) != 0 ||
        opc__numbers_uncertain(&p->numbers, ch->numbers, &ch->epoch)) {
        meta.flags |= OPC__MSG_UNCERTAIN;
    }
    meta.dest = ch->dest;
    meta.dest_len = ch->dest_len;
    meta.bytes = bytes;
    meta.wire_bytes = UINT64_MAX; /* found out when somebody asks for it in JSON */
    meta.time_s = p->wall_s;
    meta.stream = ch->stream;
    meta.epoch = ch->epoch;
    meta.number = number;
    rc = p->store->c->commit(p->store, ch->put, &meta, &uid, &ref, &position);
    if (rc == OPCOMMS_E_AGAIN) return rc;
    if (rc != OPCOMMS_OK) {
        if (rc != OPCOMMS_E_FULL && rc != OPCOMMS_E_LIMIT && rc != OPCOMMS_E_NOMEM) {
            opc__peer_failed(p, rc);
        }
        opc__flow_shut(f, ch, rc);
        return OPCOMMS_OK;
    }
    ch->put_open = 0;
    opc__numbers_take(&p->numbers, ch->numbers, &ch->epoch, number, uid);
    opc__mailbox_add(&p->mailbox, ch->box, peer, uid, ref, position, bytes);
    opc__flow_mark(f, ch, number, position);
    p->unflushed++;
    p->stats.messages_in++;
    return OPCOMMS_OK;
}

/* Feeds payload into the put; a store without room for it shuts the channel. */
OPC__FN void opc__flow_feed(opc__flow *f, opc__flow_in *ch, const uint8_t *data, size_t n) {
    opcomms_peer *p = f->peer;
    opcomms_err rc = OPCOMMS_OK;
    if (!ch->put_open) {
        rc = p->store->c->begin(p->store, &ch->put);
        if (rc == OPCOMMS_OK) ch->put_open = 1;
    }
    if (rc == OPCOMMS_OK && n > 0) rc = p->store->c->data(p->store, ch->put, data, n);
    if (rc != OPCOMMS_OK) opc__flow_shut(f, ch, rc == OPCOMMS_E_AGAIN ? OPCOMMS_E_FULL : rc);
}

/* The head of a message: of a whole one (total = what this frame carries) or of its first chunk. */
OPC__FN opcomms_err opc__flow_on_data(opc__flow *f, const opc__native_event *e) {
    opc__flow_in *ch = opc__flow_in_at(f, e->channel);
    f->receiving = NULL;
    if (ch == NULL || !ch->open) return OPCOMMS_OK; /* shut while this was on its way */
    if (ch->total != 0 || ch->put_open || ch->dropping || e->number <= ch->last ||
        ch->messages >= ch->credit_messages || ch->bytes >= ch->credit_bytes) {
        return OPCOMMS_E_PROTOCOL;
    }
    ch->last = e->number;
    ch->number = e->number;
    ch->flags = e->flags;
    ch->total = e->total;
    ch->got = 0;
    ch->messages++;
    ch->bytes += e->total;
    ch->dropping = !opc__flow_wanted(f, ch, e->number, e->total);
    f->receiving = ch->open ? ch : NULL;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__flow_on_chunk(opc__flow *f, const opc__native_event *e) {
    opc__flow_in *ch = opc__flow_in_at(f, e->channel);
    f->receiving = NULL;
    if (ch == NULL || !ch->open) return OPCOMMS_OK;
    if (ch->total == 0) return OPCOMMS_E_PROTOCOL; /* nothing is under way */
    if (e->flags & OPC__NATIVE_ABORT) {
        opc__flow_drop_put(f, ch);
        return OPCOMMS_OK;
    }
    ch->flags = (uint8_t)((ch->flags & ~OPC__NATIVE_MORE) | (e->flags & OPC__NATIVE_MORE));
    f->receiving = ch;
    return OPCOMMS_OK;
}

/* Payload of the frame whose head came last; `end`: it is complete. */
OPC__FN opcomms_err opc__flow_on_payload(opc__flow *f, const uint8_t *data, size_t n, int end) {
    opc__flow_in *ch = f->receiving;
    opcomms_err rc = OPCOMMS_OK;
    if (ch == NULL) return OPCOMMS_OK;
    if (n > ch->total - ch->got) return OPCOMMS_E_PROTOCOL;
    if (!ch->dropping) opc__flow_feed(f, ch, data, n);
    if (!ch->open) {
        f->receiving = NULL;
        return OPCOMMS_OK;
    }
    ch->got += n;
    if (!end) return OPCOMMS_OK;
    f->receiving = NULL;
    if (ch->flags & OPC__NATIVE_MORE) return ch->got < ch->total ? rc : OPCOMMS_E_PROTOCOL;
    if (ch->got != ch->total) return OPCOMMS_E_PROTOCOL;
    if (!ch->dropping) rc = opc__flow_store(f, ch, ch->number, ch->total, ch->flags);
    opc__flow_drop_put(f, ch);
    return rc;
}

/* ---- sending: what the peer says ---- */

/* A channel of ours that is free, or NULL. */
OPC__FN opc__flow_out *opc__flow_out_room(opc__flow *f) {
    uint32_t i, cap = f->out_cap == 0 ? 4 : f->out_cap * 2;
    opc__flow_out *grown;
    for (i = 0; i < f->out_cap; i++) {
        if (f->out[i].state == OPC__FLOW_FREE) return &f->out[i];
    }
    if (cap > OPC__FLOW_CHANNELS) return NULL;
    grown = (opc__flow_out *)opc__mem_array(&f->peer->mem, cap, sizeof *grown);
    if (grown == NULL) return NULL;
    if (f->out_cap > 0) memcpy(grown, f->out, f->out_cap * sizeof *grown);
    opc__mem_free(&f->peer->mem, f->out, f->out_cap * sizeof *grown);
    i = f->out_cap;
    f->out = grown;
    f->out_cap = cap;
    return &f->out[i];
}

/* A channel that is to be opened, or NULL. */
OPC__FN opc__flow_out *opc__flow_out_new(opc__flow *f, uint8_t stream, uint8_t from_id,
                                         uint8_t dest_id) {
    opc__flow_out *ch = opc__flow_out_room(f);
    if (ch == NULL) return NULL;
    memset(ch, 0, sizeof *ch);
    ch->state = OPC__FLOW_OPENING;
    ch->stream = stream;
    ch->from_id = from_id;
    ch->dest_id = dest_id;
    return ch;
}

OPC__FN uint32_t opc__flow_out_number(const opc__flow *f, const opc__flow_out *ch) {
    return (uint32_t)(ch - f->out + 1);
}

/* Calls are kept ascending by number, so that a channel carries them so. */
OPC__FN void opc__flow_link(opc__call **list, opc__call *call) {
    while (*list != NULL && (*list)->number <= call->number) list = &(*list)->next;
    call->next = *list;
    *list = call;
}

/* The calls sent on a direct channel, up to `number`, are answered. */
OPC__FN void opc__flow_answer(opc__flow *f, uint32_t channel, uint64_t number) {
    opc__call **at = &f->waiting;
    while (*at != NULL) {
        opc__call *call = *at;
        if (call->channel != channel || call->number > number) {
            at = &call->next;
            continue;
        }
        *at = call->next;
        opc__peer_answer(f->peer, call, OPCOMMS_OK, NULL);
    }
}

OPC__FN opcomms_err opc__flow_on_ack(opc__flow *f, const opc__native_event *e) {
    opc__flow_out *ch = opc__flow_out_at(f, e->channel);
    if (ch == NULL) return OPCOMMS_OK; /* closed meanwhile */
    if (ch->state == OPC__FLOW_OPENING || ch->state == OPC__FLOW_ASKED) {
        return OPCOMMS_OK; /* before its STATE: meant for the one that had this number before */
    }
    /* Beyond what was sent here: only what is known from an earlier connection. */
    if (e->number > ch->last && e->number > ch->seen) return OPCOMMS_E_PROTOCOL;
    if (e->credit_messages > ch->credit_messages) ch->credit_messages = e->credit_messages;
    if (e->credit_bytes > ch->credit_bytes) ch->credit_bytes = e->credit_bytes;
    if (ch->stream == OPC__STREAM_DIRECT) {
        if (e->flags >= OPC__LEVEL_DURABLE) opc__flow_answer(f, e->channel, e->number);
        return OPCOMMS_OK;
    }
    if (e->number == 0) return OPCOMMS_OK;
    if (e->flags >= OPC__LEVEL_DURABLE && e->number > ch->settled) {
        ch->settled = e->number < ch->last ? e->number : ch->last;
    }
    opc__peer_acked(f->peer, ch->dest, &ch->epoch, e->number, e->flags);
    return OPCOMMS_OK;
}

/* A code that the peer has told, or `otherwise`, when this version knows no such error. */
OPC__FN opcomms_err opc__flow_code(int32_t code, opcomms_err otherwise) {
    return code < 0 && code > (int32_t)OPCOMMS_E_LAST_ ? (opcomms_err)code : otherwise;
}

OPC__FN opcomms_err opc__flow_on_refuse(opc__flow *f, const opc__native_event *e) {
    opc__flow_out *ch = opc__flow_out_at(f, e->channel);
    opcomms_err why = opc__flow_code(e->code, OPCOMMS_E_REMOTE);
    opc__call *call;
    if (ch == NULL || ch->state == OPC__FLOW_OPENING || ch->state == OPC__FLOW_ASKED) {
        return OPCOMMS_OK;
    }
    if (e->number > ch->last) return OPCOMMS_E_PROTOCOL;
    if (ch->stream == OPC__STREAM_QUEUE) {
        opc__peer_refused(f->peer, ch->dest, e->number, why);
        if (e->number > ch->settled) ch->settled = e->number;
        return OPCOMMS_OK;
    }
    for (call = f->waiting; call != NULL; call = call->next) {
        if (call->channel != e->channel || call->number != e->number) continue;
        (void)opc__call_unlink(&f->waiting, call);
        opc__peer_answer(f->peer, call, why, "refused by the receiver");
        break;
    }
    return OPCOMMS_OK;
}

/* The peer has shut our channel. */
OPC__FN void opc__flow_out_end(opc__flow *f, opc__flow_out *ch, opcomms_err why) {
    uint32_t channel = opc__flow_out_number(f, ch);
    opc__call **list, *call;
    int i;
    if (ch->stream == OPC__STREAM_QUEUE) {
        opc__peer_shut(f->peer, ch->dest, why);
    } else {
        for (i = 0; i < 2; i++) {
            list = i == 0 ? &f->waiting : &f->calls;
            while (*list != NULL) {
                call = *list;
                if (i == 0 ? call->channel != channel
                           : call->from_id != ch->from_id || call->dest_id != ch->dest_id ||
                                 strcmp(call->dest, ch->text) != 0) {
                    list = &call->next;
                    continue;
                }
                *list = call->next;
                if (call->written && (i == 1 || why == OPCOMMS_E_POISONED)) {
                    opc__peer_fail(f->peer, call, why, 0, 0, "refused by the receiver");
                } else {
                    opc__peer_answer(f->peer, call, why, "refused by the receiver");
                }
            }
        }
    }
    memset(ch, 0, sizeof *ch);
}

/* The peer has opened our channel, or shut it. */
OPC__FN opcomms_err opc__flow_on_state(opc__flow *f, const opc__native_event *e) {
    opc__flow_out *ch = opc__flow_out_at(f, e->channel);
    if (ch == NULL || ch->state == OPC__FLOW_CLOSING) return OPCOMMS_OK;
    if (ch->state == OPC__FLOW_OPENING) return OPCOMMS_E_PROTOCOL;
    if (e->code == 0) {
        if (ch->state != OPC__FLOW_ASKED) return OPCOMMS_E_PROTOCOL;
        ch->state = OPC__FLOW_OPEN;
        ch->credit_messages = e->credit_messages;
        ch->credit_bytes = e->credit_bytes;
        ch->seen = e->number;
        if (e->number > 0 && ch->stream == OPC__STREAM_QUEUE) {
            opc__peer_acked(f->peer, ch->dest, &ch->epoch, e->number, OPC__LEVEL_DURABLE);
        }
        return OPCOMMS_OK;
    }
    opc__flow_out_end(f, ch, opc__flow_code(e->code, OPCOMMS_E_REMOTE));
    return OPCOMMS_OK;
}

/* ---- sending: what we say ---- */

/* What one record of ours still takes. */
typedef struct opc__pen {
    uint8_t *p;
    size_t room;
    size_t put;
} opc__pen;

OPC__FN uint8_t *opc__pen_at(opc__pen *pen) { return pen->p + pen->put; }
OPC__FN size_t opc__pen_left(const opc__pen *pen) { return pen->room - pen->put; }

/* What came of an attempt to write something. */
enum { OPC__PEN_NOTHING = 0, OPC__PEN_WROTE, OPC__PEN_FULL };

OPC__FN int opc__pen_wrote(opc__pen *pen, size_t n) {
    pen->put += n;
    return n > 0 ? OPC__PEN_WROTE : OPC__PEN_FULL;
}

OPC__FN int opc__flow_write_hello(opc__flow *f, opc__pen *pen) {
    opcomms_peer *p = f->peer;
    const uint8_t *peer = opc__tls_peer(&f->slot->conn.tls);
    const uint32_t sends_only = OPCOMMS_NO_LISTEN | OPCOMMS_MEMORY_STORE;
    opc__hello h;
    int wrote;
    memset(&h, 0, sizeof h);
    h.version = 1;
    /* One that only sends would lose what it is given, or have it refused for good. */
    if ((p->cfg.flags & sends_only) != sends_only) h.flags = OPC__NATIVE_TAKES_OPEN;
    h.chunk = OPC__FLOW_CHUNK;
    h.message_max = p->cfg.message_bytes_max;
    p->store->c->epoch(p->store, &h.now);
    opc__numbers_known(&p->numbers, peer, &h.known);
    h.count = opc__outbox_epochs(&p->outbox, peer, h.pending, OPC__NATIVE_EPOCHS);
    if (h.count > OPC__NATIVE_EPOCHS) h.count = OPC__NATIVE_EPOCHS;
    if (h.count > 0 && h.pending[h.count - 1].counter == h.now.counter) h.count--;
    wrote = opc__pen_wrote(pen, opc__native_hello(opc__pen_at(pen), opc__pen_left(pen), &h));
    f->hello_sent = wrote == OPC__PEN_WROTE;
    return wrote;
}

/* How far this channel's messages are consumed: up to before the oldest unread one. */
OPC__FN uint64_t opc__flow_consumed(opc__flow *f, opc__flow_in *ch) {
    opcomms_peer *p = f->peer;
    uint8_t dest[OPC__DEST_MAX];
    opc__msg_meta meta;
    const uint8_t *peer = opc__tls_peer(&f->slot->conn.tls);
    uint32_t i = OPC__MAILBOX_NONE;
    while ((i = opc__mailbox_from(&p->mailbox, ch->box, peer, i)) != OPC__MAILBOX_NONE) {
        if (p->store->c->meta(p->store, opc__items_ref(&p->items, i), &meta, dest, NULL) !=
            OPCOMMS_OK) {
            return 0;
        }
        if (meta.stream == ch->stream && meta.from_id == ch->from_id &&
            opc__epoch_equal(&meta.epoch, &ch->epoch)) {
            return meta.number > 0 ? meta.number - 1 : 0;
        }
    }
    return ch->all ? UINT64_MAX : ch->durable;
}

OPC__FN int opc__flow_write_ack(opc__flow *f, opc__flow_in *ch, opc__pen *pen, int level,
                                uint64_t number) {
    size_t n;
    opc__flow_credit(f, ch);
    n = opc__native_ack(opc__pen_at(pen), opc__pen_left(pen), opc__flow_in_number(f, ch),
                        (unsigned)level, number, ch->credit_messages, ch->credit_bytes);
    return opc__pen_wrote(pen, n);
}

/* Acknowledgements and credit of one channel. */
OPC__FN int opc__flow_write_acks(opc__flow *f, opc__flow_in *ch, opc__pen *pen) {
    opcomms_peer *p = f->peer;
    uint64_t durable = ch->durable, free;
    int wrote = OPC__PEN_NOTHING;
    if (ch->sealed.position != 0 && ch->sealed.position <= p->visible) {
        durable = ch->sealed.number;
        ch->sealed.position = 0;
    }
    if (ch->fresh.position != 0 && ch->fresh.position <= p->visible) {
        durable = ch->fresh.number;
        ch->fresh.position = 0;
    }
    if (durable > ch->durable) {
        wrote = opc__flow_write_ack(f, ch, pen, OPC__LEVEL_DURABLE, durable);
        if (wrote != OPC__PEN_WROTE) { /* comes back when there is room */
            ch->sealed.number = durable;
            ch->sealed.position = 1;
            return wrote;
        }
        ch->durable = durable;
        ch->received = durable;
        ch->consumed_seen = UINT64_MAX; /* look again */
    }
    if ((ch->wants & 1u) && ch->fresh.position != 0 && ch->fresh.number > ch->received) {
        wrote = opc__flow_write_ack(f, ch, pen, OPC__LEVEL_RECEIVED, ch->fresh.number);
        if (wrote != OPC__PEN_WROTE) return wrote;
        ch->received = ch->fresh.number;
    }
    if ((ch->wants & 2u) && ch->consumed_seen != p->consumptions) {
        uint64_t consumed = opc__flow_consumed(f, ch);
        if (consumed > ch->consumed) {
            wrote = opc__flow_write_ack(f, ch, pen, OPC__LEVEL_CONSUMED, consumed);
            if (wrote != OPC__PEN_WROTE) return wrote;
            ch->consumed = consumed;
        }
        ch->consumed_seen = p->consumptions;
    }
    if ((ch->wants & 2u) && (ch->all || ch->consumed < ch->durable)) p->hungry = 1;
    if (!ch->open) return wrote;
    if (ch->credit_messages - ch->messages <= p->cfg.window_messages / 2u) p->hungry = 1;
    /* Credit alone, when half of it is used up and there is more to be had. */
    free = opc__flow_free(f, ch);
    if (ch->messages + free > ch->credit_messages &&
        ch->credit_messages - ch->messages <= free / 2u) {
        return opc__flow_write_ack(f, ch, pen, OPC__LEVEL_DURABLE, ch->durable);
    }
    if (ch->credit_bytes <= ch->bytes + p->cfg.window_bytes / 2u) {
        return opc__flow_write_ack(f, ch, pen, OPC__LEVEL_DURABLE, ch->durable);
    }
    return wrote;
}

OPC__FN int opc__flow_write_state(opc__flow *f, opc__flow_in *ch, opc__pen *pen) {
    size_t n = opc__native_state(opc__pen_at(pen), opc__pen_left(pen), opc__flow_in_number(f, ch),
                                 ch->code, ch->all ? UINT64_MAX : ch->durable,
                                 ch->credit_messages, ch->credit_bytes);
    if (n > 0) ch->tell = 0;
    return opc__pen_wrote(pen, n);
}

/* Is something that was taken on this channel not durable yet? When storage has failed it will
   never be. */
OPC__FN int opc__flow_unsettled(const opc__flow *f, const opc__flow_in *ch) {
    return (ch->sealed.position != 0 || ch->fresh.position != 0) &&
           f->peer->failed == OPCOMMS_OK;
}

/* What we owe as a receiver. */
OPC__FN int opc__flow_write_owed(opc__flow *f, opc__pen *pen) {
    uint32_t i;
    int wrote;
    if (f->pong) {
        wrote = opc__pen_wrote(pen, opc__native_ping(opc__pen_at(pen), opc__pen_left(pen),
                                                     OPC__NATIVE_PONG, f->pong_bytes));
        if (wrote == OPC__PEN_FULL) return wrote;
        f->pong = 0;
    }
    while (f->refusals_count > 0) { /* before the acknowledgement that covers them */
        const opc__refusal *r = &f->refusals[0];
        wrote = opc__pen_wrote(pen, opc__native_refuse(opc__pen_at(pen), opc__pen_left(pen),
                                                       r->channel, r->number, r->code));
        if (wrote == OPC__PEN_FULL) return wrote;
        f->refusals_count--;
        memmove(&f->refusals[0], &f->refusals[1], f->refusals_count * sizeof *r);
    }
    for (i = 0; i < f->in_cap; i++) {
        if (!f->in[i].used) continue;
        if (f->in[i].open && f->in[i].tell && f->in[i].known_at > f->peer->visible &&
            f->peer->failed == OPCOMMS_OK) {
            continue;
        }
        if (f->in[i].tell && f->in[i].code == 0 &&
            opc__flow_write_state(f, &f->in[i], pen) == OPC__PEN_FULL) {
            return OPC__PEN_FULL;
        }
        if (opc__flow_write_acks(f, &f->in[i], pen) == OPC__PEN_FULL) return OPC__PEN_FULL;
        /* A channel that we shut: what was taken before is acknowledged first. */
        if (f->in[i].tell && !opc__flow_unsettled(f, &f->in[i]) &&
            opc__flow_write_state(f, &f->in[i], pen) == OPC__PEN_FULL) {
            return OPC__PEN_FULL;
        }
    }
    return OPC__PEN_NOTHING;
}

/* Copies `n` bytes of the message under way, from `offset` on. */
OPC__FN opcomms_err opc__flow_payload(opc__flow *f, const opc__flow_out *ch, uint64_t offset,
                                      uint8_t *out, size_t n) {
    opcomms_peer *p = f->peer;
    if (ch->stream == OPC__STREAM_DIRECT) {
        if (n > 0) memcpy(out, ch->call->data + offset, n);
        return OPCOMMS_OK;
    }
    return opc__store_read_all(p->store, opc__items_ref(&p->items, ch->entry), offset, out, n);
}

/* Writes the message under way, whole when it fits a record, else its next chunk. */
OPC__FN int opc__flow_write_piece(opc__flow *f, opc__flow_out *ch, uint8_t flags, opc__pen *pen) {
    uint32_t number = opc__flow_out_number(f, ch);
    uint64_t left = ch->total - ch->sent;
    size_t head = ch->sent > 0 ? 8u : 16u, n, wrote;
    int whole = ch->sent == 0 && ch->total <= OPC__FLOW_RECORD - 16u, more;
    opcomms_err rc;
    if (whole && opc__pen_left(pen) < 16u + (size_t)ch->total) return OPC__PEN_FULL;
    if (!whole && ch->sent == 0) head = 24u;
    if (!whole && opc__pen_left(pen) < head + 512u && opc__pen_left(pen) < head + left) {
        return OPC__PEN_FULL;
    }
    n = opc__pen_left(pen) - head;
    if (n > left) n = (size_t)left;
    if (n > f->chunk) n = f->chunk;
    more = n < left;
    rc = opc__flow_payload(f, ch, ch->sent, opc__pen_at(pen) + head, n);
    if (rc != OPCOMMS_OK) {
        if (ch->sent > 0) {
            (void)opc__pen_wrote(pen, opc__native_chunk_head(opc__pen_at(pen), opc__pen_left(pen),
                                                             number, OPC__NATIVE_ABORT, 0));
        }
        ch->under_way = 0;
        if (ch->stream == OPC__STREAM_QUEUE) opc__peer_unreadable(f->peer, ch->entry, rc);
        return OPC__PEN_WROTE;
    }
    flags = (uint8_t)(flags | (more ? OPC__NATIVE_MORE : 0));
    if (ch->sent == 0) {
        wrote = opc__native_data_head(opc__pen_at(pen), opc__pen_left(pen), number, flags,
                                      ch->number, ch->total, (uint32_t)n);
    } else {
        wrote = opc__native_chunk_head(opc__pen_at(pen), opc__pen_left(pen), number,
                                       more ? OPC__NATIVE_MORE : 0, (uint32_t)n);
    }
    OPCOMMS_ASSERT(wrote == head);
    (void)wrote;
    if (ch->sent == 0) { /* counted from its head on, as the receiver does */
        ch->bytes += ch->total;
        ch->messages++;
    }
    pen->put += head + n;
    ch->sent += n;
    if (!more) ch->under_way = 0;
    return OPC__PEN_WROTE;
}

OPC__FN int opc__flow_has_credit(const opc__flow_out *ch) {
    return ch->messages < ch->credit_messages && ch->bytes < ch->credit_bytes;
}

/* A channel that has to begin anew, for another opening of our log or for acknowledgements it was
   not opened for, does so once all before is settled. */
OPC__FN void opc__flow_reopen(opc__flow *f, opc__flow_out *ch) {
    if (ch->settled < ch->last || ch->under_way) return;
    ch->state = OPC__FLOW_CLOSING;
    f->peer->more = 1; /* in another step, and nothing else may ask for one */
}

/* Nothing is to be sent: the channel listens for what becomes of the oldest messages that wait to
   be consumed. */
OPC__FN void opc__flow_listen(opc__flow *f, opc__flow_out *ch) {
    const opc__outbox *o = &f->peer->outbox;
    uint32_t r = opc__outbox_oldest_era(o, ch->dest);
    if (r == OPC__ITEMS_NONE && f->crowded) {
        opc__flow_reopen(f, ch);
        if (ch->state == OPC__FLOW_CLOSING) f->crowded = 0; /* one at a time */
    }
    if (r != OPC__ITEMS_NONE && !opc__epoch_equal(&o->eras[r].epoch, &ch->epoch)) {
        opc__flow_reopen(f, ch);
    }
}

/* The next message of a destination of the outbox, or the next chunk of it. */
OPC__FN int opc__flow_write_queue(opc__flow *f, opc__flow_out *ch, opc__pen *pen) {
    opcomms_peer *p = f->peer;
    const opc__dest *d = &p->outbox.dests[ch->dest];
    uint32_t i = opc__outbox_next(&p->outbox, ch->dest);
    const opc__entry *e;
    uint8_t flags = 0;
    int wrote;
    if ((d->wants & ~ch->wants) != 0) {
        opc__flow_reopen(f, ch);
        if (ch->state != OPC__FLOW_OPEN) return OPC__PEN_NOTHING;
    }
    if (ch->under_way &&
        (i == OPC__ITEMS_NONE || opc__items_at(&p->items, i)->uid != ch->number)) { /* cancelled */
        ch->under_way = 0;
        ch->abort = ch->sent > 0;
        return OPC__PEN_WROTE;
    }
    if (i == OPC__ITEMS_NONE && !ch->abort) opc__flow_listen(f, ch);
    if (i == OPC__ITEMS_NONE || ch->abort) return OPC__PEN_NOTHING;
    e = opc__items_at(&p->items, i);
    if (!ch->under_way) {
        const opc__era *era = opc__outbox_era(&p->outbox, e);
        if (!opc__epoch_equal(&era->epoch, &ch->epoch)) {
            opc__flow_reopen(f, ch);
            return OPC__PEN_NOTHING;
        }
        if (!opc__flow_has_credit(ch)) return OPC__PEN_NOTHING;
        if (e->bytes > f->message_max) {
            opc__peer_unreadable(p, i, OPCOMMS_E_LIMIT);
            return OPC__PEN_WROTE;
        }
        ch->entry = i;
        ch->number = e->uid;
        ch->total = e->bytes;
        ch->sent = 0;
        ch->under_way = 1;
    }
    if (e->text) flags |= OPC__NATIVE_TEXT;
    if (e->tried & OPC__TRIED_TARPC) flags |= OPC__NATIVE_UNCERTAIN;
    wrote = opc__flow_write_piece(f, ch, flags, pen);
    if (wrote == OPC__PEN_FULL && ch->sent == 0) ch->under_way = 0;
    if (wrote != OPC__PEN_WROTE) return wrote;
    if (ch->sent > 0 || ch->total == 0) ch->last = ch->number;
    if (!ch->under_way && ch->sent == ch->total && ch->last == ch->number) {
        opc__outbox_sent(&p->outbox, i, OPC__TRIED_NATIVE);
    }
    return OPC__PEN_WROTE;
}

/* The channel for a call, opened when there is none; NULL: it has to wait. */
OPC__FN opc__flow_out *opc__flow_direct(opc__flow *f, const opc__call *call) {
    opc__flow_out *ch;
    uint32_t i;
    for (i = 0; i < f->out_cap; i++) {
        ch = &f->out[i];
        if (ch->state != OPC__FLOW_FREE && ch->stream == OPC__STREAM_DIRECT &&
            ch->from_id == call->from_id && ch->dest_id == call->dest_id &&
            strcmp(ch->text, call->dest) == 0) {
            /* A number sent again, behind higher ones: on a channel that begins anew. */
            if (ch->state == OPC__FLOW_OPEN && call->number <= ch->last && !ch->under_way) {
                const opc__call *w = f->waiting;
                while (w != NULL && w->channel != i + 1u) w = w->next;
                if (w == NULL) {
                    ch->state = OPC__FLOW_CLOSING;
                    f->peer->more = 1;
                }
            }
            return ch;
        }
    }
    ch = opc__flow_out_new(f, OPC__STREAM_DIRECT, call->from_id, call->dest_id);
    if (ch == NULL) return NULL;
    memcpy(ch->text, call->dest, sizeof ch->text);
    f->peer->store->c->epoch(f->peer->store, &ch->epoch);
    return ch;
}

/* The next call of a thread that waits. */
OPC__FN int opc__flow_write_call(opc__flow *f, opc__pen *pen) {
    opc__call **at = &f->calls;
    while (*at != NULL) {
        opc__call *call = *at;
        opc__flow_out *ch = opc__flow_direct(f, call);
        int wrote;
        if (call->len > f->message_max) {
            *at = call->next;
            opc__peer_answer(f->peer, call, OPCOMMS_E_LIMIT, "larger than the receiver takes");
            return OPC__PEN_WROTE;
        }
        if (ch == NULL || ch->state != OPC__FLOW_OPEN || (ch->under_way && ch->call != call) ||
            (!ch->under_way && (call->number <= ch->last || !opc__flow_has_credit(ch)))) {
            at = &call->next;
            continue;
        }
        if (!ch->under_way) {
            ch->call = call;
            ch->number = call->number;
            ch->total = call->len;
            ch->sent = 0;
            ch->under_way = 1;
        }
        wrote = opc__flow_write_piece(
            f, ch, (uint8_t)(call->mode == OPC__RENDER_TEXT ? OPC__NATIVE_TEXT : 0), pen);
        if (wrote == OPC__PEN_FULL && ch->sent == 0) ch->under_way = 0;
        if (wrote != OPC__PEN_WROTE) return wrote;
        call->written = 1;
        call->channel = opc__flow_out_number(f, ch);
        ch->last = ch->number;
        if (!ch->under_way) {
            *at = call->next;
            ch->call = NULL;
            opc__flow_link(&f->waiting, call);
        }
        return OPC__PEN_WROTE;
    }
    return OPC__PEN_NOTHING;
}

/* OPEN and CLOSE of one channel. */
OPC__FN int opc__flow_write_channel(opc__flow *f, opc__flow_out *ch, opc__pen *pen) {
    uint32_t number = opc__flow_out_number(f, ch);
    opc__native_event e;
    size_t n;
    if (ch->state == OPC__FLOW_CLOSING) {
        n = opc__native_close(opc__pen_at(pen), opc__pen_left(pen), number);
        if (n == 0) return OPC__PEN_FULL;
        pen->put += n;
        if (ch->stream == OPC__STREAM_QUEUE) {
            opc__peer_unserved(f->peer, ch->dest, OPCOMMS_OK);
        }
        memset(ch, 0, sizeof *ch);
        opc__peer_rouse(f->peer, opc__tls_peer(&f->slot->conn.tls)); /* one may wait for it */
        return OPC__PEN_WROTE;
    }
    if (ch->abort) {
        n = opc__native_chunk_head(opc__pen_at(pen), opc__pen_left(pen), number, OPC__NATIVE_ABORT,
                                   0);
        if (n == 0) return OPC__PEN_FULL;
        pen->put += n;
        ch->abort = 0;
    }
    if (ch->state != OPC__FLOW_OPENING) return OPC__PEN_NOTHING;
    memset(&e, 0, sizeof e);
    e.channel = number;
    e.stream = ch->stream;
    e.from_id = ch->from_id;
    e.dest_id = ch->dest_id;
    e.wants = ch->wants;
    e.epoch = ch->epoch;
    e.p = (const uint8_t *)ch->text;
    e.n = strlen(ch->text);
    if (ch->stream == OPC__STREAM_QUEUE) {
        const opc__dest *d = &f->peer->outbox.dests[ch->dest];
        e.p = d->dest;
        e.n = d->dest_len;
    }
    n = opc__native_open(opc__pen_at(pen), opc__pen_left(pen), &e);
    if (n > 0) ch->state = OPC__FLOW_ASKED;
    return opc__pen_wrote(pen, n);
}

/* Everything due, as far as one record takes it. */
OPC__FN int opc__flow_fill(opc__flow *f, opc__pen *pen) {
    uint32_t i, idle = 0;
    int wrote;
    if (!f->hello_sent) {
        wrote = opc__flow_write_hello(f, pen);
        if (wrote == OPC__PEN_FULL) return wrote;
    }
    if (f->bye != 0 && !f->bye_told) {
        const char *text = opc__err_text((opcomms_err)f->bye);
        size_t n = opc__native_bye(opc__pen_at(pen), opc__pen_left(pen), f->bye, text);
        f->bye_told = n > 0;
        return opc__pen_wrote(pen, n);
    }
    if (!f->hello_got || f->bye != 0) return OPC__PEN_NOTHING;
    if (f->ping) {
        static const uint8_t echo[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        wrote = opc__pen_wrote(pen, opc__native_ping(opc__pen_at(pen), opc__pen_left(pen),
                                                     OPC__NATIVE_PING, echo));
        if (wrote == OPC__PEN_FULL) return wrote;
        f->ping = 0;
        f->pinged = 1;
    }
    wrote = opc__flow_write_owed(f, pen);
    if (wrote == OPC__PEN_FULL) return wrote;
    for (i = 0; i < f->out_cap; i++) {
        if (f->out[i].state != OPC__FLOW_FREE &&
            opc__flow_write_channel(f, &f->out[i], pen) == OPC__PEN_FULL) {
            return OPC__PEN_FULL;
        }
    }
    do { /* calls and channels in turn, a message or chunk each */
        wrote = opc__flow_write_call(f, pen);
        if (wrote == OPC__PEN_FULL) return wrote;
        idle = wrote == OPC__PEN_NOTHING ? idle + 1u : 0;
        for (i = 0; i < f->out_cap && wrote != OPC__PEN_FULL; i++) {
            opc__flow_out *ch = &f->out[(f->turn + i) % f->out_cap];
            if (ch->state != OPC__FLOW_OPEN || ch->stream != OPC__STREAM_QUEUE) continue;
            wrote = opc__flow_write_queue(f, ch, pen);
            if (wrote == OPC__PEN_FULL) {
                f->turn = (f->turn + i) % f->out_cap;
                return wrote;
            }
            if (wrote == OPC__PEN_WROTE) idle = 0;
        }
    } while (idle == 0);
    for (i = 0; i < f->out_cap; i++) { /* those that are done with */
        if (f->out[i].state == OPC__FLOW_CLOSING &&
            opc__flow_write_channel(f, &f->out[i], pen) == OPC__PEN_FULL) {
            return OPC__PEN_FULL;
        }
    }
    return OPC__PEN_NOTHING;
}

OPC__FN void opc__flow_output(opc__flow *f, opc__conn *c) {
    opc__pen pen;
    size_t wrote = 0;
    for (;;) {
        int full;
        pen.put = 0;
        pen.p = opc__tls_write(&c->tls, &pen.room);
        if (pen.p == NULL || pen.room == 0) break;
        full = opc__flow_fill(f, &pen) == OPC__PEN_FULL;
        opc__tls_write_done(&c->tls, pen.put);
        wrote += pen.put;
        if (full) {
            opc__tls_flush(&c->tls); /* the record leaves; what is left goes into the next one */
            c->more = 1;
            wrote = 0;
            if (pen.put == 0 && pen.room >= OPC__FLOW_RECORD) break;
        } else if (pen.put == 0) {
            break;
        }
    }
    if (wrote > 0) {
        c->activity++;
        opc__tls_flush(&c->tls);
    }
}

/* ---- the step of a conversation ---- */

OPC__FN opcomms_err opc__flow_on_hello(opc__flow *f, const opc__native_event *e) {
    opc__hello h;
    opcomms_err rc = opc__native_hello_read(e->p, e->n, &h);
    if (rc != OPCOMMS_OK) return rc;
    f->hello_got = 1;
    f->serves = (h.flags & OPC__NATIVE_TAKES_OPEN) != 0;
    f->chunk = h.chunk;
    f->message_max = h.message_max;
    rc = opc__peer_judge(f->peer, opc__tls_peer(&f->slot->conn.tls), &h, f->slot->since_us);
    if (rc != OPCOMMS_OK) f->bye = rc;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__flow_event(opc__flow *f, const opc__native_event *e) {
    opc__flow_in *in;
    switch (e->type) {
    case OPC__NATIVE_HELLO: return opc__flow_on_hello(f, e);
    case OPC__NATIVE_OPEN: return opc__flow_on_open(f, e);
    case OPC__NATIVE_STATE: return opc__flow_on_state(f, e);
    case OPC__NATIVE_DATA: return opc__flow_on_data(f, e);
    case OPC__NATIVE_CHUNK: return opc__flow_on_chunk(f, e);
    case OPC__NATIVE_ACK: return opc__flow_on_ack(f, e);
    case OPC__NATIVE_REFUSE: return opc__flow_on_refuse(f, e);
    case OPC__NATIVE_CLOSE:
        in = opc__flow_in_at(f, e->channel);
        if (in != NULL) opc__flow_in_free(f, in);
        return OPCOMMS_OK;
    case OPC__NATIVE_PING:
        memcpy(f->pong_bytes, e->p, 8);
        f->pong = 1;
        return OPCOMMS_OK;
    case OPC__NATIVE_PONG: return OPCOMMS_OK;
    case OPC__NATIVE_BYE: return opc__flow_code(e->code, OPCOMMS_E_CLOSED);
    default: return OPCOMMS_OK;
    }
}

/* Events of what TLS has decrypted, under the allow list's lock: once a removal has returned,
   nothing from that key is stored any more. */
OPC__FN opcomms_err opc__flow_consume(opc__flow *f, const uint8_t *p, size_t len, size_t *used) {
    opcomms_peer *peer = f->peer;
    opc__native_event e;
    opcomms_err rc = OPCOMMS_OK;
    *used = 0;
    memset(&e, 0, sizeof e);
    opc__allow_lock(peer->allow);
    if (!opc__allow_check_locked(peer->allow, opc__tls_peer(&f->slot->conn.tls),
                                 &f->slot->address)) {
        rc = OPCOMMS_E_NOT_ALLOWED;
    }
    while (rc == OPCOMMS_OK && *used < len) {
        size_t n = 0;
        if (f->refusals_count == OPC__FLOW_REFUSALS ||
            peer->store->c->room(peer->store) < OPC__CONN_ROOM) {
            break; /* goes on when there is room */
        }
        rc = opc__native_next(&f->input, p + *used, len - *used, &n, &e);
        *used += n;
        if (rc == OPCOMMS_OK && e.type != OPC__NATIVE_PIECE) rc = opc__flow_event(f, &e);
        if (rc == OPCOMMS_OK && (e.type == OPC__NATIVE_PIECE || e.type == OPC__NATIVE_DATA ||
                                 e.type == OPC__NATIVE_CHUNK)) {
            rc = opc__flow_on_payload(f, e.p, e.n, e.left == 0);
        }
    }
    opc__allow_unlock(peer->allow);
    return rc;
}

OPC__FN opcomms_err opc__flow_input(opc__flow *f, opc__conn *c) {
    for (;;) {
        size_t len = 0, used = 0;
        const uint8_t *p = opc__tls_read(&c->tls, &len);
        opcomms_err rc;
        if (p == NULL || len == 0) return OPCOMMS_OK;
        rc = opc__flow_consume(f, p, len, &used);
        opc__tls_read_done(&c->tls, used);
        if (used > 0) c->activity++;
        if (rc != OPCOMMS_OK) return rc;
        if (used < len) return OPCOMMS_OK;
    }
}

/* Is something of ours on its way? */
OPC__FN int opc__flow_awaits(const opc__flow *f) {
    uint32_t i;
    if (!f->hello_got || f->waiting != NULL) return 1;
    for (i = 0; i < f->out_cap; i++) {
        const opc__flow_out *ch = &f->out[i];
        if (ch->state == OPC__FLOW_ASKED) return 1;
        if (ch->state == OPC__FLOW_OPEN && ch->stream == OPC__STREAM_QUEUE &&
            ch->settled < ch->last) {
            return 1;
        }
    }
    return 0;
}

/* A host that lost its power or network says no goodbye: whoever owes us an answer, and is silent
   on a Ping as well, is gone. */
OPC__FN opcomms_err opc__flow_watch(opc__flow *f, opc__conn *c, uint64_t now_us) {
    uint64_t most = (uint64_t)f->peer->cfg.send_timeout_ms * 1000u;
    if (c->heard != f->heard_seen) {
        f->heard_seen = c->heard;
        f->heard_us = now_us;
        f->await_us = now_us;
        f->pinged = 0;
    }
    if (!opc__flow_awaits(f)) {
        f->await_us = 0;
        f->pinged = 0;
        return OPCOMMS_OK;
    }
    if (f->await_us == 0) f->await_us = now_us;
    if (opc__peer_since(f->await_us, f->heard_us) >= OPC__LINK_CHECK_US &&
        most > OPC__LINK_CHECK_WAIT_US) {
        most = OPC__LINK_CHECK_WAIT_US; /* silent for long before that already */
    }
    if (!f->pinged && f->hello_got && opc__peer_since(now_us, f->await_us) >= most / 2u) {
        f->ping = 1;
    }
    f->await_until_us = f->await_us + (f->pinged || f->ping || !f->hello_got ? most : most / 2u);
    return opc__peer_since(now_us, f->await_us) >= most ? OPCOMMS_E_TIMEOUT : OPCOMMS_OK;
}

/* Answers are owed, or threads wait for them: a stop lets that finish. */
OPC__FN int opc__flow_busy(const opc__flow *f) {
    uint32_t i;
    if (f->calls != NULL || f->waiting != NULL || f->refusals_count > 0 || f->pong) return 1;
    for (i = 0; i < f->in_cap; i++) {
        const opc__flow_in *ch = &f->in[i];
        if (ch->used && (ch->tell || ch->sealed.position != 0 || ch->fresh.position != 0)) return 1;
    }
    return 0;
}

OPC__FN opcomms_err opc__flow_open(opcomms_peer *p, opc__slot *s) {
    opc__flow *f = (opc__flow *)opc__mem_alloc(&p->mem, sizeof *f);
    if (f == NULL) return OPCOMMS_E_NOMEM;
    f->peer = p;
    f->slot = s;
    f->heard_us = opc__peer_now(p);
    opc__native_begin(&f->input, OPC__FLOW_CHUNK);
    s->flow = f;
    return OPCOMMS_OK;
}

/* The opc__conn.native of all connections. */
OPC__FN opcomms_err opc__flow_step(opc__conn *c, uint64_t now_us) {
    opc__slot *s = (opc__slot *)c->user;
    opcomms_err rc = s->flow == NULL ? opc__flow_open(s->peer, s) : OPCOMMS_OK;
    opc__flow *f = s->flow;
    if (rc != OPCOMMS_OK) return rc;
    rc = opc__flow_input(f, c);
    if (rc == OPCOMMS_OK) rc = opc__flow_watch(f, c, now_us);
    if (rc != OPCOMMS_OK) return rc;
    opc__flow_output(f, c);
    if (f->await_us == 0) (void)opc__flow_watch(f, c, now_us); /* what has just left is awaited */
    c->busy = opc__flow_busy(f);
    if (f->bye_told && c->state == OPC__CONN_OPEN) opc__conn_end(c);
    return OPCOMMS_OK;
}

/* A destination of the outbox gets a channel; 0: there is none left. */
OPC__FN int opc__flow_serve(opc__flow *f, uint32_t dest, const opc__epoch *epoch) {
    opc__dest *d = &f->peer->outbox.dests[dest];
    opc__flow_out *ch = opc__flow_out_new(f, OPC__STREAM_QUEUE, d->from_id, d->dest_id);
    f->crowded = ch == NULL;
    if (ch == NULL) return 0;
    ch->wants = d->wants;
    ch->dest = dest;
    ch->epoch = *epoch;
    d->held++;
    return 1;
}

/* The connection is over. Destinations go back to be served anew; calls to the list of those that
   wait for a connection: a receiver knows their numbers, should it have them. */
OPC__FN void opc__flow_end(opc__flow *f, opcomms_err why) {
    opcomms_peer *p = f->peer;
    uint32_t i;
    for (i = 0; i < f->in_cap; i++) {
        if (f->in[i].used) opc__flow_in_free(f, &f->in[i]);
    }
    for (i = 0; i < f->out_cap; i++) {
        const opc__flow_out *ch = &f->out[i];
        if (ch->state == OPC__FLOW_FREE || ch->stream != OPC__STREAM_QUEUE) continue;
        opc__peer_unserved(p, ch->dest, ch->settled < ch->last || ch->state != OPC__FLOW_OPEN
                                            ? why : OPCOMMS_OK);
    }
    while (f->waiting != NULL || f->calls != NULL) {
        opc__call **list = f->waiting != NULL ? &f->waiting : &f->calls;
        opc__call *call = *list;
        *list = call->next;
        opc__flow_link(&p->directs, call);
    }
    opc__mem_free(&p->mem, f->in, f->in_cap * sizeof *f->in);
    opc__mem_free(&p->mem, f->out, f->out_cap * sizeof *f->out);
    f->slot->flow = NULL;
    opc__mem_free(&p->mem, f, sizeof *f);
}

/* A call whose thread gives up waiting. 1: it was here. */
OPC__FN int opc__flow_forget(opc__flow *f, opc__call *call) {
    uint32_t i;
    for (i = 0; i < f->out_cap; i++) {
        opc__flow_out *ch = &f->out[i];
        if (ch->state != OPC__FLOW_FREE && ch->call == call && ch->under_way) {
            ch->under_way = 0;
            ch->abort = ch->sent > 0;
            ch->call = NULL;
        }
    }
    return opc__call_unlink(&f->calls, call) || opc__call_unlink(&f->waiting, call);
}

/* >>node ==== L3 ==== the peer at work: its connections, and one step of them */

/* ---- requests of connected peers ---- */

OPC__FN void opc__node_refuse(opc__reply *reply, int call, const char *error) {
    reply->kind = OPC__RES_ERROR;
    reply->call = (uint8_t)call;
    reply->error = error;
}

OPC__FN opcomms_err opc__node_store(opcomms_peer *p, opc__slot *s, const opc__request *r,
                                    uint32_t box, opc__reply *reply) {
    opc__conn *c = &s->conn;
    const uint8_t *peer = opc__tls_peer(&c->tls);
    opc__msg_meta meta;
    uint64_t uid = 0, ref = 0, position = 0;
    opcomms_err rc;
    memset(&meta, 0, sizeof meta);
    memcpy(meta.from, peer, 32);
    meta.from_id = r->from_id;
    meta.dest_id = r->dest_id;
    meta.flags = c->put_mode == OPC__RENDER_TEXT ? OPC__MSG_TEXT : 0;
    meta.dest = r->dest;
    meta.dest_len = r->dest_len;
    meta.bytes = c->put_bytes;
    meta.wire_bytes = opc__render_total(c->put_mode, c->put_wire, c->put_bytes);
    meta.time_s = p->plat->wall_s(p->plat->user);
    /* Check and append under the list's lock: once a removal has returned, nothing from that key
       is stored any more. */
    opc__allow_lock(p->allow);
    rc = opc__allow_check_locked(p->allow, peer, &s->address) ? OPCOMMS_OK : OPCOMMS_E_NOT_ALLOWED;
    if (rc == OPCOMMS_OK) {
        rc = p->store->c->commit(p->store, c->put, &meta, &uid, &ref, &position);
    }
    opc__allow_unlock(p->allow);
    if (rc == OPCOMMS_E_AGAIN || rc == OPCOMMS_E_NOT_ALLOWED) return rc;
    if (rc != OPCOMMS_OK) {
        if (rc != OPCOMMS_E_FULL && rc != OPCOMMS_E_LIMIT && rc != OPCOMMS_E_NOMEM) {
            opc__peer_failed(p, rc); /* the others concern this message alone */
        }
        opc__node_refuse(reply, OPC__RES_SEND, "{\"MutexError\":\"storage\"}");
        return OPCOMMS_OK;
    }
    c->put_open = 0;
    opc__mailbox_add(&p->mailbox, box, peer, uid, ref, position, meta.bytes);
    p->unflushed++;
    p->stats.messages_in++;
    reply->kind = OPC__RES_SEND;
    reply->flag = 1;
    reply->position = position;
    return OPCOMMS_OK;
}

/* The newer protocol leaves 4 KB of a frame to what surrounds the text, and says so. */
OPC__FN int opc__node_too_large(opcomms_peer *p, const opc__request *r, opc__reply *reply) {
    uint64_t frame_kb = p->cfg.frame_bytes_max / 1024u;
    uint64_t most_kb = frame_kb > 4u ? frame_kb - 4u : 0;
    if (r->msg_bytes <= most_kb * 1024u) return 0;
    p->stats.too_large++;
    reply->kind = OPC__RES_TOO_LARGE;
    reply->bytes = most_kb;
    reply->wire_bytes = (r->msg_bytes + 1023u) / 1024u;
    return 1;
}

/* Charges a request to its identity. The older protocol has no error for it: there the refusal is
   told in words, and a Ping, which cannot fail, is answered. 1: refused. */
OPC__FN int opc__node_rate(opcomms_peer *p, opc__slot *s, const opc__request *r,
                           opc__reply *reply) {
    const opcomms_config *cfg = &p->cfg;
    int newer = cfg->protocol == OPCOMMS_PROTOCOL_NEWER;
    if (cfg->rate_capacity == OPCOMMS_UNLIMITED ||
        opc__rates_take(&p->rates, opc__tls_peer(&s->conn.tls), &s->rate, p->step_us,
                        cfg->rate_capacity, cfg->rate_per_second, cfg->rate_cost)) {
        return 0;
    }
    if (r->kind == OPC__REQ_PING && !newer) return 0;
    p->stats.rate_limited++;
    opc__node_refuse(reply, OPC__RES_SEND + r->kind - OPC__REQ_SEND,
                     newer ? "\"RateLimitExceeded\"" : "{\"MutexError\":\"rate limit exceeded\"}");
    return 1;
}

OPC__FN opcomms_err opc__node_send(opcomms_peer *p, opc__slot *s, const opc__request *r,
                                   opc__reply *reply) {
    const uint8_t *peer = opc__tls_peer(&s->conn.tls);
    int own = opc__mailbox_is_own(&p->mailbox, r->dest, r->dest_len);
    char from[65];
    uint32_t box = 0;
    opcomms_err rc;
    opc__str_hash_write(peer, from);
    reply->kind = OPC__RES_SEND;
    if (r->dest_cut || (!own && p->cfg.mailboxes_max == 0) ||
        !opc__route_can(p->routes, (const uint8_t *)from, 64, r->from_id, r->dest, r->dest_len,
                        r->dest_id)) {
        p->stats.routes_refused++;
        opc__peer_say(p, OPCOMMS_LOG_WARNING, "route refused for ", from);
        return OPCOMMS_OK; /* Ok(false): not stored */
    }
    if (p->cfg.protocol == OPCOMMS_PROTOCOL_NEWER && opc__node_too_large(p, r, reply)) {
        return OPCOMMS_OK;
    }
    if (s->conn.put_error != OPCOMMS_OK || p->failed != OPCOMMS_OK) {
        opc__node_refuse(reply, OPC__RES_SEND, "{\"MutexError\":\"storage\"}");
        return OPCOMMS_OK;
    }
    rc = opc__mailbox_open(&p->mailbox, r->dest, r->dest_len, r->dest_id, &box);
    if (rc == OPCOMMS_OK) rc = opc__mailbox_reserve(&p->mailbox, box, peer);
    if (rc != OPCOMMS_OK) {
        p->stats.queue_full++;
        opc__node_refuse(reply, OPC__RES_SEND, "{\"MutexError\":\"storage: queue full\"}");
        return OPCOMMS_OK;
    }
    return opc__node_store(p, s, r, box, reply);
}

/* Characters of a stored message when it is rendered into a JSON string. */
OPC__FN opcomms_err opc__node_wire_bytes(opcomms_peer *p, uint64_t ref, int mode, uint64_t bytes,
                                         uint64_t *out) {
    uint8_t piece[1024];
    uint64_t at = 0, sum = 0;
    while (at < bytes) {
        size_t got = 0;
        opcomms_err rc = p->store->c->read(p->store, ref, at, piece, sizeof piece, &got);
        if (rc != OPCOMMS_OK) return rc;
        if (got == 0) return OPCOMMS_E_LOG_DAMAGED;
        sum += opc__render_size(mode, piece, got);
        at += got;
    }
    *out = opc__render_total(mode, sum, bytes);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__node_get(opcomms_peer *p, uint32_t box, opc__reply *reply) {
    uint32_t i = opc__mailbox_oldest(&p->mailbox, box, p->visible, 0);
    uint8_t dest[OPC__DEST_MAX];
    opc__msg_meta meta;
    opcomms_err rc;
    reply->kind = OPC__RES_GET;
    if (i == OPC__MAILBOX_NONE) return OPCOMMS_OK;
    rc = p->store->c->meta(p->store, opc__items_ref(&p->items, i), &meta, dest, NULL);
    if (rc == OPCOMMS_OK) {
        reply->mode = (meta.flags & OPC__MSG_TEXT) ? OPC__RENDER_TEXT : OPC__RENDER_BYTES;
    }
    if (rc == OPCOMMS_OK && meta.wire_bytes == UINT64_MAX) { /* it came natively */
        rc = opc__node_wire_bytes(p, opc__items_ref(&p->items, i), reply->mode, meta.bytes,
                                  &meta.wire_bytes);
        if (rc == OPCOMMS_OK && meta.wire_bytes > p->cfg.frame_bytes_max - 512u) {
            opc__node_refuse(reply, OPC__RES_GET, "{\"MutexError\":\"too large for a frame\"}");
            return OPCOMMS_OK;
        }
    }
    if (rc != OPCOMMS_OK) {
        opc__peer_say(p, OPCOMMS_LOG_ERROR, "a stored message cannot be read: ",
                      opc__err_text(rc));
        opc__node_refuse(reply, OPC__RES_GET, "{\"MutexError\":\"storage\"}");
        return OPCOMMS_OK;
    }
    reply->flag = 1;
    reply->ref = opc__items_ref(&p->items, i);
    reply->uid = meta.uid;
    reply->bytes = meta.bytes;
    reply->wire_bytes = meta.wire_bytes;
    reply->from_id = meta.from_id;
    memcpy(reply->from, meta.from, 32);
    return OPCOMMS_OK;
}

/* Removes entry i from store and mailbox. */
OPC__FN opcomms_err opc__node_consume(opcomms_peer *p, uint32_t i, uint64_t *position) {
    opcomms_err rc = p->store->c->ack(p->store, opc__items_ref(&p->items, i),
                                      opc__items_at(&p->items, i)->uid, position);
    if (rc != OPCOMMS_OK) return rc;
    opc__mailbox_remove(&p->mailbox, i);
    p->consumptions++;
    if (p->hungry) opc__peer_kick(p);
    p->hungry = 0;
    return OPCOMMS_OK;
}

/* The ops.request of accepted connections. */
OPC__FN opcomms_err opc__node_request(void *user, opc__conn *c, const opc__request *r,
                                      opc__reply *reply) {
    opc__slot *s = (opc__slot *)user;
    opcomms_peer *p = s->peer;
    char own[65];
    uint32_t box, i;
    opcomms_err rc;
    OPCOMMS_ASSERT(c == &s->conn);
    if (opc__node_rate(p, s, r, reply)) return OPCOMMS_OK;
    if (r->kind == OPC__REQ_PING) {
        reply->kind = OPC__RES_PING;
        reply->flag = 1;
        return OPCOMMS_OK;
    }
    if (r->kind == OPC__REQ_SEND) return opc__node_send(p, s, r, reply);
    opc__str_hash_write(opc__tls_peer(&c->tls), own);
    box = opc__mailbox_find(&p->mailbox, (const uint8_t *)own, 64, r->dest_id);
    if (r->kind == OPC__REQ_GET) return opc__node_get(p, box, reply);
    reply->kind = OPC__RES_ACK;
    i = opc__mailbox_by_uid(&p->mailbox, box, p->visible, r->uid);
    if (i == OPC__MAILBOX_NONE) return OPCOMMS_OK;
    rc = opc__node_consume(p, i, &reply->position);
    if (rc == OPCOMMS_E_AGAIN) return rc;
    if (rc != OPCOMMS_OK) {
        opc__peer_failed(p, rc);
        opc__node_refuse(reply, OPC__RES_ACK, "{\"MutexError\":\"storage\"}");
        return OPCOMMS_OK;
    }
    p->unflushed++;
    reply->flag = 1;
    return OPCOMMS_OK;
}

OPC__FN uint64_t opc__node_ops_visible(void *user) { return ((opc__slot *)user)->peer->visible; }

/* ---- accepted connections ---- */

OPC__FN int opc__node_slot_may(void *user, const uint8_t hash[32]) {
    opc__slot *s = (opc__slot *)user;
    return opc__allow_check(s->peer->allow, hash, &s->address);
}

/* Which protocol a server spoke last; 1: tarpc. */
OPC__FN int opc__node_knows_tarpc(const opcomms_peer *p, const uint8_t hash[32],
                                  const opcomms_address *to) {
    uint32_t i;
    for (i = 0; i < OPC__PEER_KNOWN; i++) {
        const opc__known *k = &p->known[i];
        if (k->tarpc && memcmp(k->hash, hash, 32) == 0 && opc__id_same(&k->address, to)) return 1;
    }
    return 0;
}

OPC__FN void opc__node_learn(opcomms_peer *p, const uint8_t hash[32], const opcomms_address *to,
                             int tarpc) {
    uint32_t i, at = OPC__PEER_KNOWN;
    for (i = 0; i < OPC__PEER_KNOWN; i++) {
        const opc__known *k = &p->known[i];
        if (memcmp(k->hash, hash, 32) == 0 && opc__id_same(&k->address, to)) at = i;
    }
    if (at == OPC__PEER_KNOWN) {
        if (!tarpc) return; /* nothing to remember: it is asked again when it connects */
        at = p->known_next;
        p->known_next = (p->known_next + 1u) % OPC__PEER_KNOWN;
    }
    memcpy(p->known[at].hash, hash, 32);
    p->known[at].address = *to;
    p->known[at].tarpc = tarpc;
}

/* Words for a handshake that the peer has ended without any; NULL: it was something else. */
OPC__FN const char *opc__node_unwelcome(const opc__conn *c, int connecting, opcomms_err *why) {
    if (connecting || opc__tls_ready(&c->tls) || c->tls_code != 0 ||
        (*why != OPCOMMS_E_CLOSED && *why != OPCOMMS_E_TLS)) {
        return NULL;
    }
    *why = OPCOMMS_E_TLS;
    return "closed by the peer during the handshake; its allow list may not admit us";
}

/* What a failed connection of ours means, in words for whoever waited for it. */
OPC__FN opcomms_err opc__node_why(const opc__slot *s, const char **more) {
    opcomms_err why = s->conn.error;
    *more = opc__node_unwelcome(&s->conn, s->connecting, &why);
    return why == OPCOMMS_E_CLOSED ? OPCOMMS_E_CONNECT : why;
}

/* Does a call of a thread that waits belong to this connection of ours? */
OPC__FN int opc__node_wanted_by(const opc__slot *s, const opc__call *call) {
    return memcmp(call->server, s->hash, 32) == 0 && opc__id_same(&call->to, &s->address);
}

/* A queued message on its way by tarpc is answered, or will not be. */
OPC__FN void opc__node_mail_end(opcomms_peer *p, opc__slot *s, opcomms_err rc) {
    opc__mail *m = s->mail;
    opc__dest *d = &p->outbox.dests[m->dest];
    uint32_t i = opc__items_find(&p->items, m->uid);
    int there = i != OPC__ITEMS_NONE && opc__items_at(&p->items, i)->kind == OPC__KIND_OUT;
    m->busy = 0;
    OPCOMMS_ASSERT(d->held > 0);
    d->held--;
    if (rc == OPCOMMS_OK) {
        if (there) {
            const opc__era *era = opc__outbox_era(&p->outbox, opc__items_at(&p->items, i));
            opc__epoch epoch = era->epoch;
            /* That protocol tells nothing of consumption: stored is all there will be. */
            opc__peer_acked(p, m->dest, &epoch, m->uid, OPC__LEVEL_CONSUMED);
        }
        opc__outbox_wake(&p->outbox, m->dest);
        p->more = 1;
    } else if (rc == OPCOMMS_E_ROUTE && there) {
        opc__outbox_rewind(&p->outbox, m->dest);
        (void)opc__peer_kill(p, i, rc);
        opc__outbox_wake(&p->outbox, m->dest);
        p->more = 1;
    } else if (p->stopping || p->store == NULL) {
        opc__outbox_rewind(&p->outbox, m->dest);
    } else {
        opc__peer_attempt_failed(p, m->dest, rc);
    }
}

/* A native conversation has large buffers while it works, as far as there are any. */
OPC__FN void opc__node_lend(opcomms_peer *p, opc__slot *s) {
    opc__tls *t = &s->conn.tls;
    if (s->flow == NULL || s->over) return;
    if (t->lent_in == NULL && opc__tls_in_empty(t)) t->lent_in = opc__peer_lend(p);
    if (t->lent_out == NULL) t->lent_out = opc__peer_lend(p);
}

/* They go back when nothing is left in them; with `all` in any case. */
OPC__FN void opc__node_unlend(opcomms_peer *p, opc__slot *s, int all) {
    opc__tls *t = &s->conn.tls;
    if (t->lent_in != NULL && (all || opc__tls_in_empty(t))) {
        opc__peer_lent_back(p, t->lent_in);
        t->lent_in = NULL;
        t->ahead_at = t->ahead_len = 0;
    }
    if (t->lent_out != NULL && (all || opc__tls_out_empty(t))) {
        opc__peer_lent_back(p, t->lent_out);
        t->lent_out = NULL;
        t->lent_at = t->lent_len = 0;
    }
}

/* A connection is over: what was under way on it, and what waited for it, learns that. Calls fail
   with its error, unless it had worked before: they are tried once more. */
OPC__FN void opc__node_over(opcomms_peer *p, opc__slot *s) {
    const char *more = NULL;
    opcomms_err why = opc__node_why(s, &more);
    opc__call **at = &p->directs;
    int worked = s->admitted && (why == OPCOMMS_E_CONNECT || why == OPCOMMS_E_TIMEOUT) &&
                 !p->stopping;
    if (s->over) return;
    s->over = 1;
    opc__node_unlend(p, s, 1);
    if (s->flow != NULL) {
        if (s->flow->bye != 0) why = (opcomms_err)s->flow->bye;
        worked = worked && s->flow->hello_got && s->flow->bye == 0;
        opc__flow_end(s->flow, why);
    }
    if (s->mail != NULL && s->mail->busy) {
        opc__node_mail_end(p, s, s->mail->call.written ? OPCOMMS_E_UNKNOWN_OUTCOME : why);
    }
    if (!s->client) return;
    while (*at != NULL) {
        opc__call *call = *at;
        int ours = opc__node_wanted_by(s, call);
        if (!ours || (worked && !call->again)) {
            if (ours) call->again = 1;
            at = &call->next;
            continue;
        }
        *at = call->next;
        opc__peer_fail(p, call, why, s->os_code, s->conn.tls_code, more);
    }
    if (worked) {
        opc__peer_rouse(p, s->hash);
    } else if (p->store != NULL) {
        opc__peer_unreached(p, s->hash, &s->address, why);
    }
}

OPC__FN void opc__node_slot_close(opcomms_peer *p, uint32_t i) {
    opc__slot *s = p->slots[i];
    opc__conn_kill(&s->conn, OPCOMMS_E_CLOSED);
    opc__node_over(p, s);
    if (s->mail != NULL) opc__mem_free(&p->mem, s->mail, sizeof *s->mail);
    opc__conn_wipe(&s->conn);
    p->plat->sock_close(p->plat->user, s->sock);
    opc__mem_free_wiped(&p->mem, s, sizeof *s);
    p->slots[i] = p->slots[--p->slots_count];
    p->slots[p->slots_count] = NULL;
}

/* Counts handshakes under way, in all and from this address, and connections of the address. */
typedef struct opc__crowd {
    uint32_t inbound;
    uint32_t handshakes;
    uint32_t same_address;
    uint32_t same_handshakes;
} opc__crowd;

OPC__FN void opc__node_crowd(const opcomms_peer *p, const opcomms_address *from, opc__crowd *out) {
    uint32_t i;
    memset(out, 0, sizeof *out);
    for (i = 0; i < p->slots_count; i++) {
        const opc__slot *s = p->slots[i];
        int same = opc__id_ip_equal(&s->address, from);
        if (s->client) continue;
        out->inbound++;
        if (!s->admitted) out->handshakes++;
        if (same) out->same_address++;
        if (same && !s->admitted) out->same_handshakes++;
    }
}

/* All handshake places are taken: the oldest handshake of the address that has most of them gives
   way, if that address is more crowded than the newcomer's. */
OPC__FN int opc__node_make_way(opcomms_peer *p, uint32_t newcomers) {
    uint32_t i, worst = 0, victim = 0;
    for (i = 0; i < p->slots_count; i++) {
        opc__crowd crowd;
        if (p->slots[i]->admitted || p->slots[i]->client) continue;
        opc__node_crowd(p, &p->slots[i]->address, &crowd);
        if (crowd.same_handshakes > worst ||
            (crowd.same_handshakes == worst &&
             p->slots[i]->since_us < p->slots[victim]->since_us)) {
            worst = crowd.same_handshakes;
            victim = i;
        }
    }
    if (worst <= newcomers + 1) return 0;
    opc__node_slot_close(p, victim);
    p->stats.refused_limit++;
    return 1;
}

/* The checks that come before any memory or signature is spent on a stranger. */
OPC__FN int opc__node_admit(opcomms_peer *p, const opcomms_address *from, uint64_t now_us) {
    opc__crowd crowd;
    uint32_t inbound_max = p->cfg.connections_max - (p->cfg.connections_max + 3u) / 4u;
    uint32_t handshakes_max = p->cfg.handshakes_max;
    int known = opc__allow_address(p->allow, from), named = known == 2;
    if (inbound_max == 0) inbound_max = 1;
    if (known == 0) {
        p->stats.refused_address++;
        return 0;
    }
    /* A quarter of the places stays free for addresses that an entry names. */
    if (!named) {
        inbound_max -= inbound_max / 4u;
        handshakes_max -= handshakes_max / 4u;
    }
    opc__node_crowd(p, from, &crowd);
    if (crowd.same_address >= p->cfg.connections_per_address || crowd.inbound >= inbound_max ||
        p->slots_count >= p->cfg.connections_max ||
        !opc__limit_handshake(&p->limit, from, named, now_us, p->cfg.handshakes_per_second) ||
        (crowd.handshakes >= handshakes_max &&
         !opc__node_make_way(p, crowd.same_handshakes))) {
        p->stats.refused_limit++;
        return 0;
    }
    return 1;
}

OPC__FN opcomms_err opc__node_slot_open(opcomms_peer *p, intptr_t sock,
                                        const opcomms_address *from, uint64_t now_us) {
    static const opc__conn_ops ops = {opc__node_request, opc__node_ops_visible};
    uint8_t entropy[32];
    opc__slot *s;
    if (p->plat->random(p->plat->user, entropy, sizeof entropy) != OPCOMMS_OK) {
        return OPCOMMS_E_RANDOM;
    }
    s = (opc__slot *)opc__mem_alloc(&p->mem, sizeof *s);
    if (s == NULL) return OPCOMMS_E_NOMEM;
    s->sock = sock;
    s->address = *from;
    s->since_us = now_us;
    s->active_us = now_us;
    s->peer = p;
    opc__conn_init(&s->conn, 1, p->store, p->cfg.frame_bytes_max, &ops, s);
    s->conn.newer = p->cfg.protocol == OPCOMMS_PROTOCOL_NEWER;
    if (!(p->cfg.flags & OPCOMMS_TARPC_ONLY)) s->conn.native = opc__flow_step;
    opc__tls_server(&s->conn.tls, &p->tls, opc__node_slot_may, s, entropy,
                    p->plat->wall_s(p->plat->user));
    if (p->sessions.count > 0) {
        opc__tls_server_resumes(&s->conn.tls, &p->sessions, from, now_us);
    }
    opc__mem_wipe(entropy, sizeof entropy);
    p->slots[p->slots_count++] = s;
    p->stats.accepted++;
    return OPCOMMS_OK;
}

OPC__FN void opc__node_accept(opcomms_peer *p, uint64_t now_us) {
    uint32_t n;
    for (n = 0; n < OPC__PEER_ACCEPTS; n++) {
        opcomms_address from;
        intptr_t sock = OPCOMMS_NO_HANDLE;
        int os = 0;
        opcomms_err rc;
        if (p->slots_count >= p->cfg.connections_max) return;
        memset(&from, 0, sizeof from);
        rc = p->plat->tcp_accept(p->plat->user, p->listener, &sock, &from, &os);
        if (rc == OPCOMMS_E_AGAIN) return;
        if (rc != OPCOMMS_OK) { /* out of descriptors, say: not again at once */
            p->accept_again_us = now_us + 100000u;
            opc__peer_say(p, OPCOMMS_LOG_WARNING, "accept failed: ", opc__err_text(rc));
            return;
        }
        if (!opc__node_admit(p, &from, now_us) ||
            opc__node_slot_open(p, sock, &from, now_us) != OPCOMMS_OK) {
            p->plat->sock_close(p->plat->user, sock);
        }
    }
}

/* Who is at the other end of a socket. */
typedef struct opc__end {
    intptr_t sock;
    const uint8_t *hash; /* NULL: not known yet */
    const opcomms_address *address;
} opc__end;

/* Looks up and sends under the list's lock: when a removal has returned, nothing more goes to that
   key. The socket does not block, so the lock is held for one system call at most. */
OPC__FN opcomms_err opc__node_put(opcomms_peer *p, const opc__end *e, const uint8_t *data,
                                  size_t len, size_t *put) {
    opcomms_err rc = OPCOMMS_E_NOT_ALLOWED;
    int os = 0;
    if (e->hash == NULL) {
        return p->plat->sock_send(p->plat->user, e->sock, data, len, put, &os);
    }
    opc__allow_lock(p->allow);
    if (opc__allow_check_locked(p->allow, e->hash, e->address)) {
        rc = p->plat->sock_send(p->plat->user, e->sock, data, len, put, &os);
    }
    opc__allow_unlock(p->allow);
    return rc;
}

/* Moves bytes between a socket and TLS; answers 1 when anything moved. *may_recv becomes 0 when the
   socket has given all it had: asking again would be a system call for nothing. Shared by slots and
   links. */
OPC__FN int opc__node_wire(opcomms_peer *p, const opc__end *e, opc__conn *c, int *may_recv) {
    const opcomms_platform *plat = p->plat;
    int moved = 0, os = 0;
    size_t len = 0;
    opcomms_err rc;
    const uint8_t *out = opc__tls_out(&c->tls, &len);
    if (out != NULL && len > 0 && !c->output_lost) {
        size_t put = 0;
        rc = opc__node_put(p, e, out, len, &put);
        if (rc == OPCOMMS_OK) {
            opc__tls_out_done(&c->tls, put);
            moved = put > 0;
        } else if (rc == OPCOMMS_E_NOT_ALLOWED || (rc != OPCOMMS_E_AGAIN && c->server)) {
            opc__conn_kill(c, rc == OPCOMMS_E_NOT_ALLOWED ? rc : OPCOMMS_E_CLOSED);
            return 0;
        } else if (rc != OPCOMMS_E_AGAIN) {
            c->output_lost = 1; /* an alert, or answers to other calls, may have come before */
        }
    }
    if (c->output_lost) {
        *may_recv = 1;
        if (c->input_ended) opc__conn_kill(c, OPCOMMS_E_CLOSED);
    }
    if (*may_recv && !c->input_ended) {
        size_t room = 0, got = 0;
        uint8_t *in = opc__tls_in(&c->tls, &room);
        if (in == NULL || room == 0) {
            if (c->output_lost && !opc__tls_closed(&c->tls) && !opc__tls_read(&c->tls, &len)) {
                opc__conn_kill(c, OPCOMMS_E_CLOSED); /* TLS would first have to write */
            }
            return moved || c->output_lost;
        }
        rc = plat->sock_recv(plat->user, e->sock, in, room, &got, &os);
        if (rc == OPCOMMS_E_AGAIN || (rc == OPCOMMS_OK && got > 0 && got < room)) *may_recv = 0;
        if (rc == OPCOMMS_OK && got > 0) {
            opc__tls_in_done(&c->tls, got);
            c->heard++;
            moved = 1;
        } else if (rc == OPCOMMS_OK) {
            opc__conn_ended(c);
            moved = 1;
        } else if (rc != OPCOMMS_E_AGAIN || c->output_lost) {
            opc__conn_kill(c, OPCOMMS_E_CLOSED);
        }
    }
    return moved;
}

OPC__FN int opc__node_slot_wire(opcomms_peer *p, opc__slot *s, int *may_recv) {
    opc__end e;
    e.sock = s->sock;
    e.hash = s->client ? s->hash : opc__tls_peer(&s->conn.tls);
    e.address = &s->address;
    return opc__node_wire(p, &e, &s->conn, may_recv);
}

/* Tells a peer whose certificate was refused by which alert, as far as that works without waiting.
   1: told; its end should be awaited, because closing with unread input could lose the alert. */
OPC__FN int opc__node_alert(const opcomms_platform *plat, intptr_t sock, const opc__conn *c) {
    uint8_t alert[OPC__TLS_ALERT];
    size_t len = opc__tls_alert(&c->tls, alert), put = 0;
    int os = 0;
    if (len == 0) return 0;
    if (plat->sock_send(plat->user, sock, alert, len, &put, &os) != OPCOMMS_OK) return 0;
    plat->sock_shutdown(plat->user, sock, 0);
    return 1;
}

/* Our connection stands: keeps its session for the next one. A server of tarpc is remembered, and
   calls that waited are sent there over a link. */
OPC__FN void opc__node_slot_reached(opcomms_peer *p, opc__slot *s) {
    opc__call **at = &p->directs;
    if (p->kept.count > 0) {
        opc__session *keep = opc__sessions_place(&p->kept, s->hash, &s->address, 1);
        opc__tls_client_session(&s->conn.tls, keep, opc__peer_now(p));
        keep->list = opc__allow_generation(p->allow);
        keep->address = s->address;
    }
    opc__node_learn(p, s->hash, &s->address, !s->conn.is_native);
    if (s->conn.is_native) return;
    while (*at != NULL) {
        opc__call *call = *at;
        if (!opc__node_wanted_by(s, call)) {
            at = &call->next;
            continue;
        }
        *at = call->next;
        call->tarpc = 1;
        opc__peer_answer(p, call, OPCOMMS_E_UNSUPPORTED, "that peer speaks tarpc only");
    }
    opc__peer_rouse(p, s->hash);
}

OPC__FN void opc__node_slot_admitted(opcomms_peer *p, opc__slot *s) {
    s->admitted = 1;
    if (s->client) {
        if (opc__allow_check(p->allow, s->hash, &s->address)) {
            opc__node_slot_reached(p, s);
        } else {
            opc__conn_kill(&s->conn, OPCOMMS_E_NOT_ALLOWED);
        }
        return;
    }
    p->stats.handshakes++;
    if (opc__tls_resumed(&s->conn.tls)) p->stats.resumed++;
    if (!opc__allow_check(p->allow, opc__tls_peer(&s->conn.tls), &s->address)) {
        opc__conn_kill(&s->conn, OPCOMMS_E_NOT_ALLOWED);
    }
}

/* Does the connection have unsent bytes? */
OPC__FN int opc__node_unsent(opc__conn *c) {
    size_t len = 0;
    const uint8_t *out = opc__tls_out(&c->tls, &len);
    return out != NULL && len > 0;
}

/* Work of one connection in this step. */
OPC__FN void opc__node_slot_pump(opcomms_peer *p, opc__slot *s, uint64_t now_us) {
    opc__conn *c = &s->conn;
    uint32_t round;
    int may_recv = (s->events_ready & (int)(OPCOMMS_POLL_IN | OPCOMMS_POLL_ERR)) != 0, no = 0;
    if (s->connecting) {
        opcomms_err rc = OPCOMMS_OK;
        if (s->events_ready == 0) return;
        rc = p->plat->tcp_connected(p->plat->user, s->sock, &s->os_code);
        if (rc == OPCOMMS_E_AGAIN) return;
        if (rc != OPCOMMS_OK) {
            opc__conn_kill(c, rc);
            return;
        }
        s->connecting = 0;
    }
    opc__node_lend(p, s);
    for (round = 0; round < OPC__PEER_ROUNDS && c->state != OPC__CONN_DEAD; round++) {
        int moved, recv_now = may_recv, signs = 0;
        if (c->state == OPC__CONN_HANDSHAKE && recv_now && opc__tls_will_sign(&c->tls)) {
            if (p->signs > 0) { /* one signature a step: established connections come first */
                recv_now = 0;
                p->more = 1;
            } else {
                signs = 1;
            }
        }
        moved = opc__node_slot_wire(p, s, recv_now ? &may_recv : &recv_now);
        if (signs && opc__node_unsent(c)) p->signs++; /* who only drips bytes uses up nothing */
        opc__conn_step(c, now_us);
        if (c->state == OPC__CONN_OPEN && !s->admitted) opc__node_slot_admitted(p, s);
        if (!moved) break;
        if (round + 1 == OPC__PEER_ROUNDS) p->more = 1;
    }
    /* What the last step produced leaves at once instead of in the next step. */
    if (c->state != OPC__CONN_DEAD && opc__node_slot_wire(p, s, &no) &&
        c->out_stage != OPC__OUT_IDLE) {
        p->more = 1; /* the frame goes on as soon as the record is out */
    }
    opc__node_unlend(p, s, 0);
    if (c->more) p->more = 1;
    if (c->activity != s->activity_seen) {
        s->activity_seen = c->activity;
        s->active_us = now_us;
    }
    if (c->state == OPC__CONN_OPEN && c->input_ended && (s->client || opc__conn_quiet(c))) {
        opc__conn_end(c);
    }
    if (s->flow != NULL && s->flow->greeted != s->flow->hello_got && s->flow->bye == 0 &&
        c->state == OPC__CONN_OPEN) {
        s->flow->greeted = 1;
        opc__peer_rouse(p, opc__tls_peer(&c->tls)); /* what waits for such a connection */
    }
    if (s->mail != NULL && s->mail->busy && s->mail->call.done) {
        opc__node_mail_end(p, s, s->mail->call.result);
    }
}

/* Ends what is over: errors, time-outs, revoked keys, orderly closes. 1: the slot is gone. */
OPC__FN int opc__node_slot_reap(opcomms_peer *p, uint32_t i, uint64_t now_us) {
    opc__slot *s = p->slots[i];
    opc__conn *c = &s->conn;
    uint64_t handshake_us = (uint64_t)p->cfg.handshake_timeout_ms * 1000u;
    uint64_t idle_us = (uint64_t)p->cfg.idle_timeout_ms * 1000u;
    if (s->linger_until_us != 0) {
        uint8_t sink[512];
        size_t got = 0;
        int os = 0;
        opcomms_err rc = p->plat->sock_recv(p->plat->user, s->sock, sink, sizeof sink, &got, &os);
        int waits = rc == OPCOMMS_E_AGAIN || (rc == OPCOMMS_OK && got > 0);
        if (waits && now_us < s->linger_until_us) return 0;
        opc__node_slot_close(p, i);
        return 1;
    }
    if (!s->admitted && opc__peer_since(now_us, s->since_us) > handshake_us) {
        opc__conn_kill(c, OPCOMMS_E_TIMEOUT);
    }
    if (s->admitted && opc__peer_since(now_us, s->active_us) > idle_us) opc__conn_end(c);
    if (s->admitted && opc__peer_since(now_us, s->active_us) > idle_us + handshake_us) {
        opc__conn_kill(c, OPCOMMS_E_TIMEOUT);
    }
    if (c->state == OPC__CONN_ENDING && !opc__node_unsent(c)) {
        opc__conn_kill(c, OPCOMMS_E_CLOSED);
    }
    if (p->failed != OPCOMMS_OK && !p->flushing && c->reply_count > 0 &&
        c->reply[c->reply_first].position > p->visible) {
        opc__conn_kill(c, OPCOMMS_E_POISONED); /* never to be answered: let the sender know */
    }
    if (s->mail != NULL && s->mail->busy && now_us >= s->mail->call.deadline_us) {
        opc__conn_kill(c, OPCOMMS_E_TIMEOUT);
    }
    if (c->state != OPC__CONN_DEAD) return 0;
    opc__node_over(p, s);
    if (c->error == OPCOMMS_E_PROTOCOL) p->stats.protocol_errors++;
    if (!s->admitted) {
        if (!s->client) p->stats.handshakes_failed++;
        opc__peer_say(p, OPCOMMS_LOG_INFO, "handshake failed: ", opc__err_text(c->error));
        if (opc__node_alert(p->plat, s->sock, c)) {
            s->linger_until_us = now_us + OPC__PEER_LINGER_US;
            return 0;
        }
    }
    if (!s->admitted || c->input_ended || c->error == OPCOMMS_E_NOT_ALLOWED) {
        opc__node_slot_close(p, i);
        return 1;
    }
    /* Closing with unread input would reset the connection and could take an answer with it: after
       a broken protocol more input is likely, so its end is awaited for a while. */
    p->plat->sock_shutdown(p->plat->user, s->sock, 0);
    if (c->error != OPCOMMS_E_PROTOCOL) {
        opc__node_slot_close(p, i);
        return 1;
    }
    s->linger_until_us = now_us + OPC__PEER_LINGER_US;
    return 0;
}

/* ---- links: our own connections ---- */

OPC__FN int opc__link_may(void *user, const uint8_t hash[32]) {
    opc__link *l = (opc__link *)user;
    return opc__allow_check(l->peer->allow, hash, &l->address);
}

OPC__FN void opc__link_close(opc__link *l) {
    const opcomms_platform *plat = l->peer->plat;
    if (l->sock == OPCOMMS_NO_HANDLE) return;
    opc__conn_wipe(&l->conn);
    plat->sock_close(plat->user, l->sock);
    l->sock = OPCOMMS_NO_HANDLE;
    l->connecting = 0;
    l->reused = 0;
}

OPC__FN int opc__link_wire(opc__link *l, int *may_recv) {
    opc__end e;
    e.sock = l->sock;
    e.hash = l->hash;
    e.address = &l->address;
    return opc__node_wire(l->peer, &e, &l->conn, may_recv);
}

/* Says goodbye on an idle connection, as far as that works without waiting, and closes it. */
OPC__FN void opc__link_end(opc__link *l) {
    const opcomms_platform *plat = l->peer->plat;
    int no = 0;
    if (l->sock == OPCOMMS_NO_HANDLE) return;
    if (!l->connecting && l->conn.state == OPC__CONN_OPEN) {
        opc__conn_end(&l->conn);
        (void)opc__link_wire(l, &no);
        plat->sock_shutdown(plat->user, l->sock, 0);
    }
    opc__link_close(l);
}

OPC__FN opcomms_err opc__link_connect(opc__link *l, int *os_code) {
    opcomms_peer *p = l->peer;
    uint8_t entropy[32];
    opc__call *calls = l->conn.calls;
    opcomms_err rc;
    OPCOMMS_ASSERT(l->sock == OPCOMMS_NO_HANDLE);
    rc = p->plat->random(p->plat->user, entropy, sizeof entropy);
    if (rc != OPCOMMS_OK) return OPCOMMS_E_RANDOM;
    rc = p->plat->tcp_connect(p->plat->user, &l->address, &l->sock, os_code);
    if (rc != OPCOMMS_OK) {
        l->sock = OPCOMMS_NO_HANDLE;
        return rc;
    }
    l->connecting = 1;
    l->reused = 0;
    l->doubt = 0;
    l->checking = 0;
    l->heard_us = opc__peer_now(p);
    l->quiet_us = l->heard_us;
    l->heard_seen = 0;
    opc__conn_init(&l->conn, 0, NULL, p->cfg.frame_bytes_max, NULL, l);
    l->conn.calls = calls;
    opc__tls_client(&l->conn.tls, &p->tls, l->hash, opc__link_may, l, entropy,
                    p->plat->wall_s(p->plat->user), 0);
    opc__mem_wipe(entropy, sizeof entropy);
    if (l->session.until_us != 0 && l->session.list == opc__allow_generation(p->allow)) {
        opc__tls_client_resumes(&l->conn.tls, &l->session, opc__peer_now(p));
    }
    opc__session_wipe(&l->session); /* offered once: a handshake that fails is not tried again so */
    return OPCOMMS_OK;
}

/* The handshake is done: keeps its session for the next connection. */
OPC__FN void opc__link_keep_session(opc__link *l) {
    opcomms_peer *p = l->peer;
    if ((p->cfg.flags & OPCOMMS_NO_RESUMPTION) || l->session.until_us != 0) return;
    if (!opc__tls_ready(&l->conn.tls)) return;
    opc__tls_client_session(&l->conn.tls, &l->session, opc__peer_now(p));
    l->session.list = opc__allow_generation(p->allow);
    l->session.address = l->address;
}

/* Wakes whose call is done, and one more to take over when nobody does the socket work: waking all
   of them each time would cost more than the messages. */
OPC__FN void opc__link_tell(opc__link *l) {
    opc__sleeper *s, *heir = NULL;
    for (s = l->sleepers; s != NULL; s = s->next) {
        if (s->call->done) {
            opc__cond_all(&s->wake);
        } else {
            heir = s; /* the list's last is who has waited longest */
        }
    }
    if (heir != NULL && !l->owned) opc__cond_all(&heir->wake);
}

OPC__FN void opc__link_finish(opc__call *call, opcomms_err rc, int os_code, int tls_code,
                              const char *more) {
    char text[96];
    opc__text t;
    opc__text_init(&t, text, sizeof text);
    if (more != NULL) opc__text_str(&t, more);
    if (tls_code != 0) {
        int alert = tls_code >= 256;
        opc__text_str(&t, more != NULL ? "; " : "");
        opc__text_str(&t, alert ? (tls_code >= 512 ? "sent TLS alert "
                                                                       : "received TLS alert ")
                                : "TLS engine error ");
        opc__text_i64(&t, alert ? tls_code & 255 : tls_code);
    }
    call->result = opc__err_set(&call->detail, rc, os_code, text);
    call->detail.tls_code = tls_code;
    call->done = 1;
}

/* Reads what has arrived already and throws it away, so that closing does not reset. */
OPC__FN void opc__link_drain(opc__link *l) {
    const opcomms_platform *plat = l->peer->plat;
    uint8_t sink[512];
    uint32_t n;
    for (n = 0; n < 32; n++) {
        size_t got = 0;
        int os = 0;
        opcomms_err rc = plat->sock_recv(plat->user, l->sock, sink, sizeof sink, &got, &os);
        if (rc != OPCOMMS_OK || got == 0) return;
    }
}

/* Ends every call with rc. */
OPC__FN void opc__link_fail_all(opc__link *l, opcomms_err rc, int os_code, const char *more) {
    opc__call *call;
    int tls_code = l->conn.tls_code;
    while ((call = l->conn.waiting) != NULL) {
        l->conn.waiting = call->next;
        opc__link_finish(call, OPCOMMS_E_UNKNOWN_OUTCOME, os_code, tls_code, more);
    }
    while ((call = l->conn.calls) != NULL) {
        l->conn.calls = call->next;
        opc__link_finish(call, rc, os_code, tls_code, more);
    }
    opc__link_tell(l);
}

/* Takes a call out of the connection; 0: it was not there. *written: its request had left. */
OPC__FN int opc__link_unlink(opc__link *l, const opc__call *call, int *written) {
    *written = 0;
    if (opc__call_unlink(&l->conn.calls, call)) return 1;
    *written = 1;
    return opc__call_unlink(&l->conn.waiting, call);
}

/* A kept connection that was silent for long may be gone without a word (a host without power, a
   forgotten translation of addresses): it is asked first, so that the request is not lost in it. */
OPC__FN void opc__link_check(opc__link *l, uint64_t now_us) {
    opc__call *c = &l->check;
    int written = 0;
    if (l->checking && (c->done || now_us >= c->deadline_us)) {
        if (!c->done && l->conn.state == OPC__CONN_OPEN) opc__conn_kill(&l->conn, OPCOMMS_E_CLOSED);
        (void)opc__link_unlink(l, c, &written);
        l->checking = 0;
        l->conn.alone = 0;
    }
    if (l->checking || !l->reused || l->conn.calls == NULL || l->conn.waiting != NULL ||
        l->conn.out_stage != OPC__OUT_IDLE || l->conn.state != OPC__CONN_OPEN ||
        now_us < l->quiet_us || now_us - l->quiet_us < OPC__LINK_CHECK_US) {
        return;
    }
    memset(c, 0, sizeof *c);
    c->kind = OPC__REQ_PING;
    c->span_id = l->conn.next_id + 1u;
    c->deadline_us = now_us + OPC__LINK_CHECK_WAIT_US;
    c->next = l->conn.calls;
    l->conn.calls = c;
    l->checking = 1;
    l->conn.alone = 1;
}

/* The connection died. Calls whose request had left have an unknown outcome; the others are tried
   once more if the connection had worked before (it was closed while idle), else they fail. */
OPC__FN void opc__link_died(opc__link *l, opcomms_err why, int os_code) {
    opc__call *call;
    int again = l->reused && (why == OPCOMMS_E_CLOSED || why == OPCOMMS_E_TLS);
    int tls_code = l->conn.tls_code;
    const char *more = opc__node_unwelcome(&l->conn, l->connecting, &why);
    int written = 0;
    if (l->checking) (void)opc__link_unlink(l, &l->check, &written);
    l->checking = 0;
    if (why == OPCOMMS_E_CLOSED && !l->reused) why = OPCOMMS_E_CONNECT;
    while ((call = l->conn.waiting) != NULL) {
        l->conn.waiting = call->next;
        opc__link_finish(call, why == OPCOMMS_E_PROTOCOL ? why : OPCOMMS_E_UNKNOWN_OUTCOME,
                         os_code, tls_code, more);
    }
    if (!again) opc__link_fail_all(l, why, os_code, more);
    if (l->sock != OPCOMMS_NO_HANDLE && opc__node_alert(l->peer->plat, l->sock, &l->conn)) {
        opc__link_drain(l);
    }
    opc__link_close(l);
    l->conn.out_stage = OPC__OUT_IDLE;
    opc__link_tell(l);
}

/* Socket and connection work, without waiting; 1 when it could go on at once. Called by the owner,
   with the link's lock. */
OPC__FN int opc__link_pump(opc__link *l) {
    opcomms_peer *p = l->peer;
    int os = 0, may_recv = 1, no = 0;
    uint32_t round;
    opcomms_err rc;
    if (l->sock == OPCOMMS_NO_HANDLE) {
        rc = opc__link_connect(l, &os);
        if (rc != OPCOMMS_OK) opc__link_fail_all(l, rc, os, NULL);
        return 0;
    }
    if (l->connecting) {
        opcomms_pollfd fd;
        memset(&fd, 0, sizeof fd);
        fd.handle = l->sock;
        fd.events = OPCOMMS_POLL_OUT;
        rc = p->plat->wait(p->plat->user, &fd, 1, 0, &os);
        if (rc == OPCOMMS_OK && fd.revents == 0) return 0;
        if (rc == OPCOMMS_OK) rc = p->plat->tcp_connected(p->plat->user, l->sock, &os);
        if (rc != OPCOMMS_OK) {
            opc__link_died(l, rc, os);
            return 0;
        }
        l->connecting = 0;
    }
    for (round = 0; round < OPC__PEER_ROUNDS; round++) {
        uint64_t answers = l->conn.answers;
        int moved = opc__link_wire(l, &may_recv), more = moved;
        uint32_t reads = 0;
        /* A kept connection may have been closed while it was idle. Everything that has arrived is
           read before a request goes out, so that it is not written into a dead connection. */
        while (more && reads++ < 64 && l->reused && l->conn.waiting == NULL &&
               l->conn.out_stage == OPC__OUT_IDLE && !opc__tls_closed(&l->conn.tls)) {
            may_recv = 1; /* a record may come in pieces */
            more = opc__link_wire(l, &may_recv);
        }
        if (l->conn.input_ended && l->conn.state == OPC__CONN_OPEN && l->conn.waiting == NULL) {
            opc__conn_kill(&l->conn, OPCOMMS_E_CLOSED);
        }
        opc__link_check(l, opc__peer_now(p));
        opc__conn_step(&l->conn, opc__peer_now(p));
        if (l->conn.heard != l->heard_seen) {
            l->heard_seen = l->conn.heard;
            l->heard_us = opc__peer_now(p);
            l->quiet_us = l->heard_us;
            l->doubt = 0;
        }
        if (l->conn.answers != answers) {
            l->reused = 1;
            opc__link_keep_session(l);
            opc__link_tell(l);
        }
        if (l->conn.state == OPC__CONN_OPEN && l->conn.input_ended) {
            opc__conn_kill(&l->conn, OPCOMMS_E_CLOSED);
        }
        if (l->conn.state == OPC__CONN_DEAD) {
            opc__link_died(l, l->conn.error, 0);
            return 0;
        }
        if (!moved) break;
    }
    return opc__link_wire(l, &no) && l->conn.calls != NULL;
}

/* A call has given up. What has been silent for long is taken for gone, because a host that lost
   power or its network says no goodbye; the next call then gets a new connection. Other calls in
   hope of an answer stretch that time. */
OPC__FN void opc__link_doubt(opc__link *l) {
    const opcomms_platform *plat = l->peer->plat;
    uint64_t now = opc__peer_now(l->peer), most = OPC__LINK_SILENT_US;
    l->doubt = 1;
    if (l->conn.calls != NULL || l->conn.waiting != NULL) {
        most = (uint64_t)l->peer->cfg.send_timeout_ms * 1000u;
    }
    if (l->sock == OPCOMMS_NO_HANDLE || now < l->heard_us || now - l->heard_us < most) return;
    opc__conn_kill(&l->conn, OPCOMMS_E_CLOSED);
    plat->sock_shutdown(plat->user, l->sock, 1); /* wakes the owner, which cleans up */
}

/* Takes a call whose time is up out of the link. */
OPC__FN void opc__link_give_up(opc__link *l, opc__call *call) {
    opcomms_err rc = OPCOMMS_E_TIMEOUT;
    int written = 0, there;
    if (l->conn.calls == call && l->conn.out_stage != OPC__OUT_IDLE) {
        opc__call *rest = call->next; /* half a frame is out: this connection is lost */
        l->conn.calls = NULL;
        opc__link_finish(call, rc, 0, 0, NULL);
        l->conn.calls = rest;
        opc__conn_kill(&l->conn, OPCOMMS_E_CLOSED);
        if (l->sock != OPCOMMS_NO_HANDLE) { /* wakes the owner, which cleans up */
            l->peer->plat->sock_shutdown(l->peer->plat->user, l->sock, 1);
        }
        return;
    }
    there = opc__link_unlink(l, call, &written);
    OPCOMMS_ASSERT(there);
    (void)there;
    if (written) rc = OPCOMMS_E_UNKNOWN_OUTCOME;
    opc__link_finish(call, rc, 0, 0, NULL);
    opc__link_doubt(l);
}

OPC__FN void opc__link_free(opcomms_peer *p, uint32_t i) {
    opc__link *l = p->links[i];
    OPCOMMS_ASSERT(l->refs == 0);
    opc__mutex_lock(&l->lock);
    opc__link_end(l);
    if (l->session.until_us != 0 && p->kept.count > 0) {
        *opc__sessions_place(&p->kept, l->hash, &l->address, 1) = l->session;
    }
    opc__mutex_unlock(&l->lock);
    opc__mutex_destroy(&l->lock);
    opc__mem_free_wiped(&p->mem, l, sizeof *l);
    p->links[i] = p->links[--p->links_count];
    p->links[p->links_count] = NULL;
}

/* Makes room for one connection more by ending a link that nobody uses. */
OPC__FN opcomms_err opc__node_room(opcomms_peer *p) {
    uint32_t i, idle = OPC__MAILBOX_NONE;
    if (p->links_count + p->slots_count < p->cfg.connections_max) return OPCOMMS_OK;
    for (i = 0; i < p->links_count; i++) {
        if (p->links[i]->refs == 0 && (idle == OPC__MAILBOX_NONE ||
                                       p->links[i]->used_us < p->links[idle]->used_us)) {
            idle = i;
        }
    }
    if (idle == OPC__MAILBOX_NONE) return OPCOMMS_E_LIMIT;
    opc__link_free(p, idle);
    return OPCOMMS_OK;
}

/* The session that an earlier connection to this key and address has left; NULL: none. */
OPC__FN opc__session *opc__node_kept(opcomms_peer *p, const uint8_t hash[32],
                                     const opcomms_address *address) {
    opc__session *old;
    if (p->kept.count == 0) return NULL;
    old = opc__sessions_place(&p->kept, hash, address, 1);
    return old->until_us != 0 && memcmp(old->hash, hash, 32) == 0 &&
                   opc__session_same_ip(&old->address, address) &&
                   old->address.port == address->port ? old : NULL;
}

/* Finds or makes the link to (hash, address) and counts the caller in. Under the node's lock. */
OPC__FN opcomms_err opc__link_get(opcomms_peer *p, const uint8_t hash[32],
                                  const opcomms_address *address, opc__link **out) {
    opc__session *old;
    uint32_t i;
    opc__link *l;
    opcomms_err rc;
    for (i = 0; i < p->links_count; i++) {
        l = p->links[i];
        if (memcmp(l->hash, hash, 32) == 0 && opc__id_same(&l->address, address)) {
            l->refs++;
            *out = l;
            return OPCOMMS_OK;
        }
    }
    rc = opc__node_room(p);
    if (rc != OPCOMMS_OK) return rc;
    l = (opc__link *)opc__mem_alloc(&p->mem, sizeof *l);
    if (l == NULL) return OPCOMMS_E_NOMEM;
    if (!opc__mutex_init(&l->lock)) {
        opc__mem_free(&p->mem, l, sizeof *l);
        return OPCOMMS_E_NOMEM;
    }
    memcpy(l->hash, hash, 32);
    l->address = *address;
    l->peer = p;
    l->sock = OPCOMMS_NO_HANDLE;
    l->refs = 1;
    old = opc__node_kept(p, hash, address);
    if (old != NULL) {
        l->session = *old;
        opc__session_wipe(old);
    }
    p->links[p->links_count++] = l;
    opc__peer_wake(p); /* whoever sleeps learns that there will be an idle connection to end */
    *out = l;
    return OPCOMMS_OK;
}

/* ---- our own connections that the step works on ---- */

/* The native conversation with a key that calls and queued messages can use now; NULL: none. With
   an address: on a connection of ours to it; without: on any, the newest first. */
OPC__FN opc__slot *opc__node_find(opcomms_peer *p, const uint8_t hash[32],
                                  const opcomms_address *to) {
    uint32_t i;
    for (i = p->slots_count; i > 0; i--) {
        opc__slot *s = p->slots[i - 1];
        if (s->flow == NULL || !s->flow->hello_got || s->flow->bye != 0 || !s->flow->serves ||
            s->conn.state != OPC__CONN_OPEN || s->conn.input_ended ||
            memcmp(opc__tls_peer(&s->conn.tls), hash, 32) != 0) {
            continue;
        }
        if (to->family == 0 || (s->client && opc__id_same(&s->address, to))) return s;
    }
    return NULL;
}

/* Our connection to (key, address), whatever it has come to; NULL: none. */
OPC__FN opc__slot *opc__node_dialed(opcomms_peer *p, const uint8_t hash[32],
                                    const opcomms_address *to) {
    uint32_t i;
    for (i = 0; i < p->slots_count; i++) {
        opc__slot *s = p->slots[i];
        if (s->client && s->conn.state != OPC__CONN_DEAD && s->conn.state != OPC__CONN_ENDING &&
            !s->conn.input_ended && memcmp(s->hash, hash, 32) == 0 &&
            opc__id_same(&s->address, to)) {
            return s;
        }
    }
    return NULL;
}

/* Offers the session that an earlier connection to the same key and address left. */
OPC__FN void opc__node_resume(opcomms_peer *p, opc__slot *s, uint64_t now_us) {
    opc__session *old = opc__node_kept(p, s->hash, &s->address);
    if (old != NULL && old->list == opc__allow_generation(p->allow)) {
        opc__tls_client_resumes(&s->conn.tls, old, now_us);
        opc__session_wipe(old); /* offered once */
    }
}

/* Begins to connect. */
OPC__FN opcomms_err opc__node_dial(opcomms_peer *p, const uint8_t hash[32],
                                   const opcomms_address *to, int *os) {
    uint8_t entropy[32];
    uint64_t now = opc__peer_now(p);
    int native = !(p->cfg.flags & OPCOMMS_TARPC_ONLY);
    opc__slot *s;
    opcomms_err rc = opc__node_room(p);
    if (rc != OPCOMMS_OK) return rc;
    if (p->plat->random(p->plat->user, entropy, sizeof entropy) != OPCOMMS_OK) {
        return OPCOMMS_E_RANDOM;
    }
    s = (opc__slot *)opc__mem_alloc(&p->mem, sizeof *s);
    if (s == NULL) return OPCOMMS_E_NOMEM;
    rc = p->plat->tcp_connect(p->plat->user, to, &s->sock, os);
    if (rc != OPCOMMS_OK) {
        opc__mem_free(&p->mem, s, sizeof *s);
        return rc;
    }
    s->client = 1;
    s->connecting = 1;
    s->address = *to;
    memcpy(s->hash, hash, 32);
    s->since_us = now;
    s->active_us = now;
    s->peer = p;
    opc__conn_init(&s->conn, 0, p->store, p->cfg.frame_bytes_max, NULL, s);
    if (native) s->conn.native = opc__flow_step;
    opc__tls_client(&s->conn.tls, &p->tls, hash, opc__node_slot_may, s, entropy,
                    p->plat->wall_s(p->plat->user), native);
    opc__mem_wipe(entropy, sizeof entropy);
    opc__node_resume(p, s, now);
    p->slots[p->slots_count++] = s;
    opc__peer_kick(p);
    return OPCOMMS_OK;
}

/* Gives calls that wait for a connection to one, or begins to make it. */
OPC__FN void opc__node_directs(opcomms_peer *p) {
    opc__call **at = &p->directs;
    while (*at != NULL) {
        opc__call *call = *at;
        opc__slot *s = opc__node_find(p, call->server, &call->to);
        opcomms_err rc = OPCOMMS_OK;
        int os = 0;
        if (p->stopping) {
            *at = call->next;
            opc__peer_fail(p, call, OPCOMMS_E_CLOSED, 0, 0, NULL);
            continue;
        }
        if (s != NULL) {
            *at = call->next;
            opc__flow_link(&s->flow->calls, call);
            s->flow->peer->more = 1;
            continue;
        }
        if (call->to.family == 0) {
            rc = OPCOMMS_E_CONNECT;
        } else if (opc__node_dialed(p, call->server, &call->to) == NULL) {
            rc = opc__node_dial(p, call->server, &call->to, &os);
        }
        if (rc == OPCOMMS_OK) {
            at = &call->next;
            continue;
        }
        *at = call->next;
        opc__peer_fail(p, call, rc, os, 0,
                       call->to.family == 0 ? "that peer has no connection to us" : NULL);
    }
}

/* ---- the outbox at work ---- */

/* Hands the oldest message of a destination to a connection that speaks tarpc. */
OPC__FN void opc__node_mail(opcomms_peer *p, opc__slot *s, uint32_t d) {
    uint32_t i = opc__outbox_next(&p->outbox, d);
    opc__dest *x = &p->outbox.dests[d];
    uint8_t dest[OPC__DEST_MAX];
    opc__msg_meta meta;
    opc__call *call;
    opcomms_err rc;
    opc__outbox_park(&p->outbox, d);
    if (i == OPC__ITEMS_NONE || (s->mail != NULL && s->mail->busy)) return; /* woken later */
    if (opc__items_at(&p->items, i)->native || (p->cfg.flags & OPCOMMS_NATIVE_ONLY)) {
        opc__peer_attempt_failed(p, d, OPCOMMS_E_UNSUPPORTED);
        return;
    }
    if (s->mail == NULL) s->mail = (opc__mail *)opc__mem_alloc(&p->mem, sizeof *s->mail);
    if (s->mail == NULL) {
        opc__peer_attempt_failed(p, d, OPCOMMS_E_NOMEM);
        return;
    }
    call = &s->mail->call;
    memset(call, 0, sizeof *call);
    call->ref = opc__items_ref(&p->items, i);
    rc = p->store->c->meta(p->store, call->ref, &meta, dest, NULL);
    if (rc == OPCOMMS_OK) {
        call->mode = (meta.flags & OPC__MSG_TEXT) ? OPC__RENDER_TEXT : OPC__RENDER_BYTES;
        rc = opc__node_wire_bytes(p, call->ref, call->mode, meta.bytes, &call->wire_bytes);
    }
    if (rc == OPCOMMS_OK && (meta.dest_len >= sizeof call->dest ||
                             call->wire_bytes > p->cfg.frame_bytes_max - 512u)) {
        rc = OPCOMMS_E_LIMIT;
    }
    if (rc != OPCOMMS_OK) {
        (void)opc__peer_kill(p, i, rc);
        opc__outbox_wake(&p->outbox, d);
        return;
    }
    call->kind = OPC__REQ_SEND;
    call->stored = 1;
    call->len = (size_t)meta.bytes;
    memcpy(call->dest, meta.dest, meta.dest_len);
    call->dest_id = meta.dest_id;
    call->from_id = meta.from_id;
    call->span_id = opc__peer_span(p);
    call->deadline_us = opc__peer_now(p) + (uint64_t)p->cfg.send_timeout_ms * 1000u;
    s->mail->busy = 1;
    s->mail->dest = d;
    s->mail->uid = meta.uid;
    s->conn.calls = call;
    x->held++;
    opc__outbox_sent(&p->outbox, i, OPC__TRIED_TARPC);
    opc__peer_event(p, meta.uid, OPCOMMS_STATE_SENT, OPCOMMS_OK, x->server);
    p->more = 1;
}

/* One destination that has something to send, or to ask: finds it a connection. */
OPC__FN void opc__node_serve(opcomms_peer *p, uint32_t d) {
    const opc__dest *x = &p->outbox.dests[d];
    opc__slot *s;
    uint32_t i = opc__outbox_next(&p->outbox, d);
    int os = 0;
    opcomms_err rc = OPCOMMS_OK;
    if (x->held > 0) { /* its channel looks for itself */
        opc__outbox_park(&p->outbox, d);
        return;
    }
    if (!opc__allow_check(p->allow, x->server, x->address.family != 0 ? &x->address : NULL)) {
        opc__peer_attempt_failed(p, d, OPCOMMS_E_NOT_ALLOWED);
        return;
    }
    s = opc__node_find(p, x->server, &x->address);
    if (s != NULL) {
        uint32_t era = i != OPC__ITEMS_NONE ? opc__items_at(&p->items, i)->who & 0xffffu
                                            : opc__outbox_oldest_era(&p->outbox, d);
        opc__outbox_park(&p->outbox, d);
        if (era == OPC__ITEMS_NONE) return; /* all has left the queue meanwhile */
        if (opc__flow_serve(s->flow, d, &p->outbox.eras[era].epoch)) p->more = 1;
        return;
    }
    if (x->address.family == 0) { /* until that peer connects */
        opc__outbox_park(&p->outbox, d);
        return;
    }
    s = opc__node_dialed(p, x->server, &x->address);
    if (s != NULL && s->admitted && !s->conn.is_native) {
        opc__node_mail(p, s, d);
        return;
    }
    if (s == NULL) rc = opc__node_dial(p, x->server, &x->address, &os);
    opc__outbox_park(&p->outbox, d);
    if (rc != OPCOMMS_OK) opc__peer_attempt_failed(p, d, rc);
}

/* What is due in the outbox. */
OPC__FN void opc__node_outbox(opcomms_peer *p, uint64_t now_us) {
    uint32_t n, d, i, k;
    int32_t code = 0;
    if (p->store == NULL || p->failed != OPCOMMS_OK || p->stopping) return;
    n = opc__outbox_tick(&p->outbox, now_us, p->visible);
    for (k = 0; k < 64; k++) {
        i = opc__outbox_giveup(&p->outbox, p->wall_s, &code);
        if (i == OPC__ITEMS_NONE || !opc__peer_kill(p, i, (opcomms_err)code)) break;
        p->more = 1;
    }
    if (p->unsettled) {
        p->unsettled = 0;
        for (d = 0; d < p->outbox.dests_count && !p->unsettled; d++) opc__peer_progress(p, d);
    }
    for (; n > 0; n--) {
        d = opc__outbox_due(&p->outbox);
        if (d == OPC__ITEMS_NONE) break;
        opc__node_serve(p, d);
    }
}

/* ---- the step ---- */

/* The allow list has changed: closes whom it no longer admits. */
OPC__FN void opc__node_revoke(opcomms_peer *p) {
    uint64_t now = opc__allow_generation(p->allow);
    uint32_t i;
    if (now == p->allow_seen) return;
    p->allow_seen = now;
    opc__sessions_wipe(&p->sessions);
    opc__sessions_wipe(&p->kept);
    for (i = 0; i < p->slots_count; i++) {
        opc__slot *s = p->slots[i];
        if (s->admitted && s->conn.state != OPC__CONN_DEAD &&
            !opc__allow_check(p->allow, opc__tls_peer(&s->conn.tls), &s->address)) {
            opc__conn_kill(&s->conn, OPCOMMS_E_NOT_ALLOWED);
        }
    }
    for (i = p->links_count; i > 0; i--) {
        opc__link *l = p->links[i - 1];
        if (opc__allow_check(p->allow, l->hash, &l->address)) continue;
        if (l->refs == 0) {
            opc__link_free(p, i - 1);
            continue;
        }
        opc__mutex_lock(&l->lock);
        l->kill = OPCOMMS_E_NOT_ALLOWED;
        if (l->sock != OPCOMMS_NO_HANDLE) p->plat->sock_shutdown(p->plat->user, l->sock, 1);
        opc__link_tell(l);
        opc__mutex_unlock(&l->lock);
    }
}

OPC__FN void opc__node_links_idle(opcomms_peer *p, uint64_t now_us) {
    uint32_t i;
    for (i = p->links_count; i > 0; i--) {
        opc__link *l = p->links[i - 1];
        if (l->refs == 0 && now_us > l->used_us &&
            now_us - l->used_us > (uint64_t)p->cfg.idle_timeout_ms * 1000u) {
            opc__link_free(p, i - 1);
        }
    }
}

/* Shortens a wait so that it ends when `due_us` has passed. */
OPC__FN void opc__node_until(int32_t *wait_ms, uint64_t now_us, uint64_t due_us) {
    uint64_t ms = due_us > now_us ? (due_us - now_us) / 1000u + 1u : 0;
    if (ms < 0x7fffffffu && (*wait_ms < 0 || ms < (uint64_t)*wait_ms)) *wait_ms = (int32_t)ms;
}

/* When the outbox has something to do next: a retry, or a message that expires. */
OPC__FN void opc__node_until_outbox(const opcomms_peer *p, uint64_t now, int32_t *wait_ms) {
    uint64_t due = opc__outbox_deadline(&p->outbox);
    int64_t end = opc__outbox_giveup_s(&p->outbox), wall;
    if (p->stopping || p->failed != OPCOMMS_OK) return;
    if (due != UINT64_MAX) opc__node_until(wait_ms, now, due);
    if (end == INT64_MAX) return;
    wall = p->plat->wall_s(p->plat->user);
    if (end <= wall) {
        *wait_ms = 0;
    } else if (end - wall < 1000000) {
        opc__node_until(wait_ms, now, now + (uint64_t)(end - wall) * 1000000u);
    }
}

/* What a connection waits for at its socket. */
OPC__FN unsigned opc__node_slot_events(opc__slot *s) {
    size_t room = 0;
    unsigned events = 0;
    if (s->linger_until_us != 0) return OPCOMMS_POLL_IN;
    if (s->connecting) return OPCOMMS_POLL_OUT;
    if (!s->conn.input_ended && opc__tls_in(&s->conn.tls, &room) != NULL && room > 0) {
        events |= OPCOMMS_POLL_IN;
    }
    if (opc__node_unsent(&s->conn)) events |= OPCOMMS_POLL_OUT;
    return events;
}

/* What to wait for. Returns the count; fds_slot tells which slot an entry belongs to. */
OPC__FN size_t opc__node_pollset(opcomms_peer *p, int32_t *timeout_ms) {
    uint64_t now = opc__peer_now(p);
    size_t n = 0;
    uint32_t i;
    int32_t wait_ms = -1;
    uint64_t idle_us = (uint64_t)p->cfg.idle_timeout_ms * 1000u;
    memset(&p->fds[n], 0, sizeof p->fds[n]);
    p->fds[n].handle = p->wake[0];
    p->fds[n].events = OPCOMMS_POLL_IN;
    p->fds_slot[n++] = NULL;
    if (p->listener != OPCOMMS_NO_HANDLE && p->slots_count < p->cfg.connections_max) {
        if (now >= p->accept_again_us) {
            memset(&p->fds[n], 0, sizeof p->fds[n]);
            p->fds[n].handle = p->listener;
            p->fds[n].events = OPCOMMS_POLL_IN;
            p->fds_slot[n++] = NULL;
        } else {
            opc__node_until(&wait_ms, now, p->accept_again_us);
        }
    }
    for (i = 0; i < p->slots_count; i++) {
        opc__slot *s = p->slots[i];
        unsigned events = opc__node_slot_events(s);
        if (s->linger_until_us != 0) {
            opc__node_until(&wait_ms, now, s->linger_until_us);
        } else if (!s->admitted) {
            opc__node_until(&wait_ms, now,
                            s->since_us + (uint64_t)p->cfg.handshake_timeout_ms * 1000u);
        } else {
            opc__node_until(&wait_ms, now, s->active_us + idle_us +
                            (s->conn.state == OPC__CONN_ENDING
                                 ? (uint64_t)p->cfg.handshake_timeout_ms * 1000u : 0));
        }
        if (s->flow != NULL && s->flow->await_us != 0 && s->conn.state == OPC__CONN_OPEN) {
            opc__node_until(&wait_ms, now, s->flow->await_until_us);
        }
        if (s->mail != NULL && s->mail->busy) {
            opc__node_until(&wait_ms, now, s->mail->call.deadline_us);
        }
        if (events == 0) continue; /* nothing the socket could say matters now */
        memset(&p->fds[n], 0, sizeof p->fds[n]);
        p->fds[n].handle = s->sock;
        p->fds[n].events = (uint16_t)events;
        p->fds_slot[n++] = s;
    }
    for (i = 0; i < p->links_count; i++) {
        const opc__link *l = p->links[i];
        opc__node_until(&wait_ms, now, (l->refs > 0 ? now : l->used_us) + idle_us);
    }
    if (p->cfg.durability == OPCOMMS_DURABLE_INTERVAL &&
        p->store->c->durable(p->store) < p->store->c->end(p->store)) {
        opc__node_until(&wait_ms, now,
                        p->flushed_us + (uint64_t)p->cfg.sync_interval_ms * 1000u);
    }
    opc__node_until_outbox(p, now, &wait_ms);
    if (p->stopping && (wait_ms < 0 || wait_ms > 20)) wait_ms = 20;
    if (p->more) wait_ms = 0;
    *timeout_ms = wait_ms;
    return n;
}

OPC__FN void opc__node_pump_all(opcomms_peer *p, uint64_t now_us) {
    uint32_t i;
    int pass;
    for (pass = 0; pass < 2; pass++) { /* established connections first, then handshakes */
        for (i = 0; i < p->slots_count; i++) {
            opc__slot *s = p->slots[i];
            if ((s->admitted != 0) != (pass == 0) || s->linger_until_us != 0) continue;
            opc__node_slot_pump(p, s, now_us);
            s->events_ready = 0;
        }
    }
}

/* One step: does everything that can be done without waiting. Called with the lock held, by one
   thread at a time; the lock is open while the disk syncs. `n` entries of fds carry events. */
OPC__FN void opc__node_step(opcomms_peer *p, size_t n) {
    uint64_t now = opc__peer_now(p);
    uint32_t i;
    size_t k;
    int knock = 0, no = 0;
    p->signs = 0;
    p->step_us = now;
    p->wall_s = p->plat->wall_s(p->plat->user);
    for (k = 0; k < n; k++) {
        if (p->fds[k].revents == 0) continue;
        if (p->fds[k].handle == p->wake[0]) p->plat->wake_drain(p->plat->user, p->wake);
        if (p->fds[k].handle == p->listener) knock = 1;
        if (p->fds_slot[k] != NULL) p->fds_slot[k]->events_ready = (int)p->fds[k].revents;
    }
    opc__node_revoke(p);
    if (knock && !p->stopping && now >= p->accept_again_us) opc__node_accept(p, now);
    for (i = 0; i < 2 && (i == 0 || p->more); i++) { /* a sync releases answers */
        p->more = 0;
        opc__node_outbox(p, now);
        if (p->directs != NULL) opc__node_directs(p);
        opc__node_pump_all(p, now);
        if (!p->flushing) opc__peer_compact(p); /* its last piece needs that no flush runs */
        opc__peer_flush(p, now);
    }
    for (i = p->slots_count; i > 0; i--) {
        if (p->stopping && p->slots[i - 1]->admitted && opc__conn_quiet(&p->slots[i - 1]->conn)) {
            opc__conn_end(&p->slots[i - 1]->conn);
            (void)opc__node_slot_wire(p, p->slots[i - 1], &no);
        } else if (p->stopping && !p->slots[i - 1]->admitted) {
            opc__conn_kill(&p->slots[i - 1]->conn, OPCOMMS_E_CLOSED);
        }
        (void)opc__node_slot_reap(p, i - 1, now);
    }
    opc__node_links_idle(p, now);
    opc__peer_compact(p);
    if (p->failed == OPCOMMS_OK && !p->stopping) opc__peer_warn(p);
    opc__peer_ahead(p);
}

/* >>run ==== L3 ==== who pumps the node: the background thread, the flush thread, or the caller */

/* Waits for events without the lock, then steps. The lock is held before and after. */
OPC__FN opcomms_err opc__run_once(opcomms_peer *p, int32_t most_ms) {
    int32_t timeout_ms = 0;
    size_t n = opc__node_pollset(p, &timeout_ms);
    int os = 0;
    opcomms_err rc;
    if (timeout_ms < 0 || (most_ms >= 0 && timeout_ms > most_ms)) timeout_ms = most_ms;
    p->kicked = 0;
    p->sleeping = 1;
    opc__peer_unlock(p);
    rc = p->plat->wait(p->plat->user, p->fds, n, timeout_ms, &os);
    opc__mutex_lock(&p->lock);
    p->sleeping = 0;
    if (rc != OPCOMMS_OK) n = 0;
    opc__node_step(p, n);
    return rc;
}

/* Everything that a stop waits for is done. */
OPC__FN int opc__run_drained(const opcomms_peer *p) {
    return p->slots_count == 0 && !p->flushing;
}

#if !defined(OPCOMMS_NO_THREADS)
OPC__FN void *opc__run_thread(void *arg) {
    opcomms_peer *p = (opcomms_peer *)arg;
    uint64_t stop_at = 0;
    opc__mutex_lock(&p->lock);
    for (;;) {
        if (p->stopping) {
            uint64_t now = opc__peer_now(p);
            if (stop_at == 0) stop_at = now + OPC__PEER_STOP_US;
            if (opc__run_drained(p) || now >= stop_at) break;
        }
        if (opc__run_once(p, -1) != OPCOMMS_OK) {
            /* The wait itself fails only for want of memory: rest, rather than spin. */
            opc__cond_wait(&p->changed, &p->lock, 100000u);
        }
    }
    opc__peer_unlock(p);
    return NULL;
}

OPC__FN void *opc__run_flusher(void *arg) {
    opcomms_peer *p = (opcomms_peer *)arg;
    opc__mutex_lock(&p->lock);
    for (;;) {
        while (!p->flush_wanted && !p->flush_quit) {
            opc__cond_wait(&p->flush_start, &p->lock, UINT64_MAX);
        }
        if (!p->flush_wanted) break;
        p->flush_wanted = 0;
        opc__peer_flush_here(p);
        opc__peer_wake(p);
    }
    opc__mutex_unlock(&p->lock);
    return NULL;
}

OPC__FN void opc__run_flush_async(opcomms_peer *p) {
    p->flush_wanted = 1;
    opc__cond_all(&p->flush_start);
}
#endif

OPC__FN opcomms_err opc__run_start(opcomms_peer *p) {
    if (p->cfg.flags & OPCOMMS_NO_BACKGROUND) return OPCOMMS_OK;
#if !defined(OPCOMMS_NO_THREADS)
    if (!(p->cfg.flags & OPCOMMS_MEMORY_STORE) &&
        p->cfg.durability != OPCOMMS_DURABLE_NEVER) {
        if (!opc__thread_start(&p->flusher, opc__run_flusher, p)) return OPCOMMS_E_NOMEM;
        p->flush_async = opc__run_flush_async;
    }
    if (!opc__thread_start(&p->thread, opc__run_thread, p)) return OPCOMMS_E_NOMEM;
    return OPCOMMS_OK;
#else
    return OPCOMMS_E_UNSUPPORTED;
#endif
}

/* Brings the threads to their end; the lock is not held. Without threads: pumps until drained. */
OPC__FN void opc__run_end(opcomms_peer *p) {
#if !defined(OPCOMMS_NO_THREADS)
    if (p->thread.running) {
        opc__peer_wake(p);
        opc__thread_join(&p->thread);
    }
    if (p->flusher.running) {
        opc__mutex_lock(&p->lock);
        p->flush_quit = 1;
        opc__cond_all(&p->flush_start);
        opc__mutex_unlock(&p->lock);
        opc__thread_join(&p->flusher);
        p->flush_async = NULL;
    }
#endif
    if ((p->cfg.flags & OPCOMMS_NO_BACKGROUND) && p->fds != NULL && p->store != NULL) {
        uint64_t stop_at = opc__peer_now(p) + OPC__PEER_STOP_US;
        opc__mutex_lock(&p->lock);
        while (p->pumping) opc__cond_wait(&p->changed, &p->lock, 1000u); /* another thread's poll */
        p->pumping = 1;
        while (!opc__run_drained(p) && opc__peer_now(p) < stop_at) (void)opc__run_once(p, 20);
        p->pumping = 0;
        opc__peer_unlock(p);
    }
}

/* One wait-and-step by a caller of a peer without background thread, unless another thread is
   doing that already. Takes and releases the lock. */
OPC__FN opcomms_err opc__run_pump(opcomms_peer *p, int32_t most_ms) {
    opcomms_err rc = OPCOMMS_OK;
    opc__mutex_lock(&p->lock);
    if (p->pumping) {
        opc__cond_wait(&p->changed, &p->lock, 1000u);
    } else if (!p->stopped) {
        p->pumping = 1;
        rc = opc__run_once(p, most_ms);
        p->pumping = 0;
        opc__cond_all(&p->changed);
    }
    opc__peer_unlock(p);
    return rc;
}

/* ---- a blocking call over a link ---- */

/* Waits for the link's socket, with its lock open. A peer without background thread is pumped
   meanwhile, so that two of them can send to each other at the same time. */
OPC__FN void opc__run_link_wait(opc__link *l, uint64_t left_us) {
    opcomms_peer *p = l->peer;
    opcomms_pollfd fd;
    int32_t ms = left_us > 10000000u ? 10000 : (int32_t)((left_us + 999u) / 1000u);
    int os = 0;
    memset(&fd, 0, sizeof fd);
    fd.handle = l->sock;
    fd.events = OPCOMMS_POLL_IN;
    if (l->connecting) {
        fd.events = OPCOMMS_POLL_OUT;
    } else if (opc__node_unsent(&l->conn)) {
        fd.events = OPCOMMS_POLL_IN | OPCOMMS_POLL_OUT;
    }
    opc__mutex_unlock(&l->lock);
    if (p->cfg.flags & OPCOMMS_NO_BACKGROUND) {
        if (opc__run_pump(p, 0) == OPCOMMS_OK && ms > 1) ms = 1;
    }
    if (fd.handle != OPCOMMS_NO_HANDLE) {
        (void)p->plat->wait(p->plat->user, &fd, 1, ms, &os); /* the pump sees what is wrong */
    }
    opc__mutex_lock(&l->lock);
}

/* Waits, with the link's lock open, until opc__link_tell means this call or the time is up. */
OPC__FN void opc__run_sleep(opc__link *l, opc__sleeper *s, uint64_t left_us) {
    opc__sleeper **at = &l->sleepers;
    s->next = l->sleepers;
    l->sleepers = s;
    opc__cond_wait(&s->wake, &l->lock, left_us);
    while (*at != s) at = &(*at)->next;
    *at = s->next;
}

/* Carries one call through: until it is done or its deadline has passed. */
OPC__FN void opc__run_call(opc__link *l, opc__call *call) {
    opcomms_peer *p = l->peer;
    opc__call **end;
    opc__sleeper me;
    memset(&me, 0, sizeof me);
    me.call = call;
    if (!opc__cond_init(&me.wake)) {
        opc__link_finish(call, OPCOMMS_E_NOMEM, 0, 0, NULL);
        return;
    }
    opc__mutex_lock(&l->lock);
    end = &l->conn.calls;
    if (l->conn.calls == NULL && l->conn.waiting == NULL && !l->doubt) {
        l->heard_us = opc__peer_now(p); /* silent so far because it was not asked */
    }
    while (*end != NULL) end = &(*end)->next;
    *end = call;
    while (!call->done) {
        uint64_t now = opc__peer_now(p);
        if (l->kill != OPCOMMS_OK && !l->owned) {
            opc__link_fail_all(l, l->kill, 0, NULL);
            opc__link_close(l);
            l->kill = OPCOMMS_OK; /* who calls from now on has been looked up anew */
            break;
        }
        if (now >= call->deadline_us) {
            opc__link_give_up(l, call);
            break;
        }
        if (l->owned) { /* another caller does the socket work for all of us */
            opc__run_sleep(l, &me, call->deadline_us - now);
            continue;
        }
        l->owned = 1;
        if (!opc__link_pump(l) && !call->done && l->kill == OPCOMMS_OK) {
            uint64_t until = call->deadline_us;
            if (l->checking && l->check.deadline_us < until) until = l->check.deadline_us;
            opc__run_link_wait(l, until > now ? until - now : 0);
        }
        l->owned = 0;
    }
    if (l->conn.state == OPC__CONN_DEAD && l->sock != OPCOMMS_NO_HANDLE && !l->owned) {
        opc__link_died(l, l->conn.error, 0);
    }
    opc__link_tell(l); /* somebody else takes over */
    opc__mutex_unlock(&l->lock);
    opc__cond_destroy(&me.wake);
}

/* >>pub-access ==== L4 ==== public functions of identifiers, allow list and routing table */

OPCOMMS_API opcomms_err opcomms_identifier_parse(const char *text, opcomms_identifier *out) {
    if (text == NULL || out == NULL) return OPCOMMS_E_INVAL;
    return opc__id_parse(text, strlen(text), 0, out) ? OPCOMMS_OK : OPCOMMS_E_SYNTAX;
}

OPCOMMS_API opcomms_err opcomms_route_identifier_parse(const char *text, opcomms_identifier *out) {
    if (text == NULL || out == NULL) return OPCOMMS_E_INVAL;
    return opc__id_parse(text, strlen(text), 1, out) ? OPCOMMS_OK : OPCOMMS_E_SYNTAX;
}

OPCOMMS_API opcomms_err opcomms_identifier_format(const opcomms_identifier *id, char *out,
                                                  size_t cap) {
    opc__text t;
    if (id == NULL || out == NULL || cap == 0 || id->id < OPCOMMS_ANY_ID || id->id > 255 ||
        memchr(id->hash, 0, sizeof id->hash) == NULL) {
        return OPCOMMS_E_INVAL;
    }
    opc__text_init(&t, out, cap);
    opc__id_format(&t, id);
    return t.cut ? OPCOMMS_E_BUFFER : OPCOMMS_OK;
}

OPCOMMS_API opcomms_err opcomms_allow_list_new(const opcomms_allocator *alloc,
                                               opcomms_allow_list **out) {
    opc__list *l = NULL;
    opcomms_err rc;
    if (out == NULL) return OPCOMMS_E_INVAL;
    rc = opc__list_new(alloc, sizeof(opcomms_allow_list), &l);
    if (rc == OPCOMMS_OK) *out = (opcomms_allow_list *)(void *)l;
    return rc;
}

OPCOMMS_API void opcomms_allow_list_retain(opcomms_allow_list *list) {
    if (list != NULL) opc__list_retain(&list->l);
}

OPCOMMS_API void opcomms_allow_list_release(opcomms_allow_list *list) {
    if (list != NULL) opc__list_release(&list->l, sizeof *list);
}

OPCOMMS_API opcomms_err opcomms_allow_list_add(opcomms_allow_list *list, const char *hash,
                                               const char *ip) {
    uint8_t bin[32];
    opc__rule key;
    opcomms_err rc;
    if (list == NULL || hash == NULL || !opc__str_hash_parse(hash, strlen(hash), bin)) {
        return OPCOMMS_E_INVAL;
    }
    opc__rule_key(&key, hash, 64, NULL, 0);
    if (ip != NULL) {
        rc = opc__id_ip_parse(ip, strlen(ip), &key.ip);
        if (rc != OPCOMMS_OK) return rc;
    }
    opc__allow_lock(list);
    rc = opc__rules_add(&list->l.mem, &list->l.now, &key);
    if (rc == OPCOMMS_OK) opc__list_changed(&list->l);
    opc__allow_unlock(list);
    return rc;
}

/* `ask` NULL: a certificate. */
OPC__FN opcomms_err opc__pub_allow_file(opcomms_allow_list *list, const char *path,
                                        const char *ip, const opc__seal_ask *ask,
                                        opcomms_error *err) {
    uint8_t bin[32];
    char hash[65];
    opcomms_err rc;
    if (list == NULL || path == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    if (opc__plat_default() == NULL) return opc__err_set(err, OPCOMMS_E_UNSUPPORTED, 0, NULL);
    rc = ask == NULL ? opc__cert_file_hash(opc__plat_default(), path, bin, err)
                     : opc__seal_file_hash(opc__plat_default(), path, ask, bin, err);
    if (rc != OPCOMMS_OK) return rc;
    opc__str_hash_write(bin, hash);
    rc = opcomms_allow_list_add(list, hash, ip);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, path);
}

OPCOMMS_API opcomms_err opcomms_allow_list_add_key_file(opcomms_allow_list *list, const char *path,
                                                        const char *ip, opcomms_error *err) {
    return opcomms_allow_list_add_key_file_with_password(list, path, ip, NULL, NULL, err);
}

OPCOMMS_API opcomms_err opcomms_allow_list_add_key_file_with_password(
    opcomms_allow_list *list, const char *path, const char *ip, opcomms_password_fn password,
    void *password_user, opcomms_error *err) {
    opc__seal_ask ask;
    opc__seal_ask_init(&ask, password, password_user);
    return opc__pub_allow_file(list, path, ip, &ask, err);
}

OPCOMMS_API opcomms_err opcomms_allow_list_add_cert_file(opcomms_allow_list *list,
                                                         const char *path, const char *ip,
                                                         opcomms_error *err) {
    return opc__pub_allow_file(list, path, ip, NULL, err);
}

OPCOMMS_API opcomms_err opcomms_allow_list_remove(opcomms_allow_list *list, const char *hash) {
    opc__rule key;
    uint32_t at = 0;
    opcomms_err rc = OPCOMMS_E_NOT_FOUND;
    if (list == NULL || hash == NULL) return OPCOMMS_E_INVAL;
    opc__rule_key(&key, hash, strlen(hash), NULL, 0);
    opc__allow_lock(list);
    if (opc__rules_find(&list->l.now, &key, &at)) {
        opc__rules_drop(&list->l.mem, &list->l.now, at);
        opc__list_changed(&list->l);
        rc = OPCOMMS_OK;
    }
    opc__allow_unlock(list);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_allow_list_clear(opcomms_allow_list *list) {
    if (list == NULL) return OPCOMMS_E_INVAL;
    opc__allow_lock(list);
    opc__rules_free(&list->l.mem, &list->l.now);
    opc__list_changed(&list->l);
    opc__allow_unlock(list);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__pub_list_all(opc__list *l, int on) {
    opc__mutex_lock(&l->lock);
    l->now.all = on != 0;
    opc__list_changed(l);
    opc__mutex_unlock(&l->lock);
    return OPCOMMS_OK;
}

/* Rules; sources without destinations do not count. */
OPC__FN size_t opc__pub_list_count(opc__list *l, int routes) {
    size_t n;
    uint32_t i;
    opc__mutex_lock(&l->lock);
    n = l->now.count;
    for (i = 0; routes && i < l->now.count; i++) n -= l->now.rule[i].b == NULL;
    opc__mutex_unlock(&l->lock);
    return n;
}

OPC__FN int opc__pub_list_is_all(opc__list *l) {
    int on;
    opc__mutex_lock(&l->lock);
    on = l->now.all != 0;
    opc__mutex_unlock(&l->lock);
    return on;
}

OPC__FN opcomms_err opc__pub_list_entry(opc__list *l, size_t index, char *a, char *b, size_t cap) {
    opc__text ta, tb;
    opcomms_err rc = OPCOMMS_E_NOT_FOUND;
    if (a == NULL || b == NULL || cap == 0) return OPCOMMS_E_INVAL;
    opc__mutex_lock(&l->lock);
    if (index < l->now.count) {
        const opc__rule *r = &l->now.rule[index];
        char ip[64] = "";
        if (r->ip.family != 0) opc__id_address_format(&r->ip, 0, ip);
        opc__text_init(&ta, a, cap);
        opc__text_bytes(&ta, r->a, r->a_len);
        opc__text_init(&tb, b, cap);
        opc__text_str(&tb, ip);
        if (r->b != NULL) opc__text_bytes(&tb, r->b, r->b_len);
        rc = ta.cut || tb.cut ? OPCOMMS_E_BUFFER : OPCOMMS_OK;
    }
    opc__mutex_unlock(&l->lock);
    return rc;
}

OPCOMMS_API int opcomms_allow_list_is_all(opcomms_allow_list *list) {
    return list == NULL ? 0 : opc__pub_list_is_all(&list->l);
}

OPCOMMS_API opcomms_err opcomms_allow_list_entry(opcomms_allow_list *list, size_t index,
                                                 char *hash, char *ip, size_t cap) {
    return list == NULL ? OPCOMMS_E_INVAL : opc__pub_list_entry(&list->l, index, hash, ip, cap);
}

OPCOMMS_API opcomms_err opcomms_allow_list_allow_all(opcomms_allow_list *list, int on) {
    return list == NULL ? OPCOMMS_E_INVAL : opc__pub_list_all(&list->l, on);
}

OPCOMMS_API int opcomms_allow_list_is_allowed(opcomms_allow_list *list, const char *hash,
                                              const char *ip) {
    opcomms_address from;
    int ok;
    if (list == NULL || hash == NULL) return 0;
    memset(&from, 0, sizeof from);
    if (ip != NULL && opc__id_ip_parse(ip, strlen(ip), &from) != OPCOMMS_OK) return 0;
    opc__allow_lock(list);
    ok = opc__allow_text_locked(list, hash, strlen(hash), ip != NULL ? &from : NULL);
    opc__allow_unlock(list);
    return ok;
}

OPCOMMS_API size_t opcomms_allow_list_count(opcomms_allow_list *list) {
    return list == NULL ? 0 : opc__pub_list_count(&list->l, 0);
}

OPCOMMS_API opcomms_err opcomms_allow_list_load(opcomms_allow_list *list, const char *path,
                                                opcomms_error *err) {
    if (list == NULL || path == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    return opc__list_load(&list->l, opc__allow_event, path, err);
}

OPCOMMS_API opcomms_err opcomms_allow_list_load_text(opcomms_allow_list *list, const char *text,
                                                     size_t len, opcomms_error *err) {
    if (list == NULL || text == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    return opc__list_load_text(&list->l, opc__allow_event, text, len, err);
}

OPCOMMS_API opcomms_err opcomms_allow_list_reload(opcomms_allow_list *list, opcomms_error *err) {
    if (list == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    return opc__list_reload(&list->l, opc__allow_event, err);
}

OPCOMMS_API opcomms_err opcomms_allow_list_save(opcomms_allow_list *list, const char *path,
                                                opcomms_error *err) {
    if (list == NULL || path == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    return opc__list_save(&list->l, 0, path, err);
}

OPCOMMS_API opcomms_err opcomms_routing_table_new(const opcomms_allocator *alloc,
                                                  opcomms_routing_table **out) {
    opc__list *l = NULL;
    opcomms_err rc;
    if (out == NULL) return OPCOMMS_E_INVAL;
    rc = opc__list_new(alloc, sizeof(opcomms_routing_table), &l);
    if (rc == OPCOMMS_OK) *out = (opcomms_routing_table *)(void *)l;
    return rc;
}

OPCOMMS_API void opcomms_routing_table_retain(opcomms_routing_table *table) {
    if (table != NULL) opc__list_retain(&table->l);
}

OPCOMMS_API void opcomms_routing_table_release(opcomms_routing_table *table) {
    if (table != NULL) opc__list_release(&table->l, sizeof *table);
}

/* The normal form of a rule's text, or 0. */
OPC__FN int opc__pub_route_norm(const char *text, char out[160]) {
    opcomms_identifier id;
    opc__text t;
    if (text == NULL || !opc__id_parse(text, strlen(text), 1, &id)) return 0;
    opc__text_init(&t, out, 160);
    opc__id_format(&t, &id);
    return 1;
}

OPCOMMS_API opcomms_err opcomms_routing_table_add(opcomms_routing_table *table, const char *from,
                                                  const char *to) {
    char a[160], b[160];
    opc__rule key;
    opcomms_err rc;
    if (table == NULL || from == NULL || to == NULL) return OPCOMMS_E_INVAL;
    if (!opc__pub_route_norm(from, a) || !opc__pub_route_norm(to, b)) return OPCOMMS_E_SYNTAX;
    opc__rule_key(&key, a, strlen(a), b, strlen(b));
    opc__mutex_lock(&table->l.lock);
    rc = opc__rules_add(&table->l.mem, &table->l.now, &key);
    if (rc == OPCOMMS_OK) opc__list_changed(&table->l);
    opc__mutex_unlock(&table->l.lock);
    return rc;
}

/* Removes rules by source, by destination, or by both. */
OPC__FN opcomms_err opc__pub_route_remove(opcomms_routing_table *table, const char *from,
                                          const char *to) {
    char a[160], b[160];
    uint32_t i;
    opcomms_err rc = OPCOMMS_E_NOT_FOUND;
    if ((from != NULL && !opc__pub_route_norm(from, a)) ||
        (to != NULL && !opc__pub_route_norm(to, b))) {
        return OPCOMMS_E_SYNTAX;
    }
    opc__mutex_lock(&table->l.lock);
    for (i = table->l.now.count; i > 0; i--) {
        const opc__rule *r = &table->l.now.rule[i - 1];
        if (from != NULL && opc__rule_bytes(r->a, r->a_len, a, (uint32_t)strlen(a)) != 0) continue;
        if (to != NULL && (r->b == NULL ||
                           opc__rule_bytes(r->b, r->b_len, b, (uint32_t)strlen(b)) != 0)) {
            continue;
        }
        opc__rules_drop(&table->l.mem, &table->l.now, i - 1);
        rc = OPCOMMS_OK;
    }
    if (rc == OPCOMMS_OK) opc__list_changed(&table->l);
    opc__mutex_unlock(&table->l.lock);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_routing_table_remove(opcomms_routing_table *table,
                                                     const char *from, const char *to) {
    if (table == NULL || from == NULL || to == NULL) return OPCOMMS_E_INVAL;
    return opc__pub_route_remove(table, from, to);
}

OPCOMMS_API opcomms_err opcomms_routing_table_remove_all_from(opcomms_routing_table *table,
                                                              const char *from) {
    if (table == NULL || from == NULL) return OPCOMMS_E_INVAL;
    return opc__pub_route_remove(table, from, NULL);
}

OPCOMMS_API opcomms_err opcomms_routing_table_remove_all_to(opcomms_routing_table *table,
                                                            const char *to) {
    if (table == NULL || to == NULL) return OPCOMMS_E_INVAL;
    return opc__pub_route_remove(table, NULL, to);
}

OPCOMMS_API opcomms_err opcomms_routing_table_allow_all(opcomms_routing_table *table, int on) {
    return table == NULL ? OPCOMMS_E_INVAL : opc__pub_list_all(&table->l, on);
}

OPCOMMS_API int opcomms_routing_table_can_route(opcomms_routing_table *table,
                                                const opcomms_identifier *from,
                                                const opcomms_identifier *to) {
    if (table == NULL || from == NULL || to == NULL || from->id < 0 || from->id > 255 ||
        to->id < 0 || to->id > 255 || memchr(from->hash, 0, sizeof from->hash) == NULL ||
        memchr(to->hash, 0, sizeof to->hash) == NULL) {
        return 0;
    }
    return opc__route_can(table, (const uint8_t *)from->hash, strlen(from->hash),
                          (uint8_t)from->id, (const uint8_t *)to->hash, strlen(to->hash),
                          (uint8_t)to->id);
}

OPCOMMS_API size_t opcomms_routing_table_count(opcomms_routing_table *table) {
    return table == NULL ? 0 : opc__pub_list_count(&table->l, 1);
}

OPCOMMS_API int opcomms_routing_table_is_all(opcomms_routing_table *table) {
    return table == NULL ? 0 : opc__pub_list_is_all(&table->l);
}

OPCOMMS_API opcomms_err opcomms_routing_table_entry(opcomms_routing_table *table, size_t index,
                                                    char *from, char *to, size_t cap) {
    return table == NULL ? OPCOMMS_E_INVAL : opc__pub_list_entry(&table->l, index, from, to, cap);
}

OPCOMMS_API opcomms_err opcomms_routing_table_load(opcomms_routing_table *table, const char *path,
                                                   opcomms_error *err) {
    if (table == NULL || path == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    return opc__list_load(&table->l, opc__route_event, path, err);
}

OPCOMMS_API opcomms_err opcomms_routing_table_load_text(opcomms_routing_table *table,
                                                        const char *text, size_t len,
                                                        opcomms_error *err) {
    if (table == NULL || text == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    return opc__list_load_text(&table->l, opc__route_event, text, len, err);
}

OPCOMMS_API opcomms_err opcomms_routing_table_reload(opcomms_routing_table *table,
                                                     opcomms_error *err) {
    if (table == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    return opc__list_reload(&table->l, opc__route_event, err);
}

OPCOMMS_API opcomms_err opcomms_routing_table_save(opcomms_routing_table *table, const char *path,
                                                   opcomms_error *err) {
    if (table == NULL || path == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    return opc__list_save(&table->l, 1, path, err);
}

/* >>pub-key ==== L4 ==== public functions of keys and certificates */

OPCOMMS_API opcomms_err opcomms_get_pubk_hash_from_privk(const char *key_file, char hash[65],
                                                         opcomms_error *err) {
    return opcomms_get_pubk_hash_from_privk_with_password(key_file, NULL, NULL, hash, err);
}

OPCOMMS_API opcomms_err opcomms_get_pubk_hash_from_privk_with_password(
    const char *key_file, opcomms_password_fn password, void *password_user, char hash[65],
    opcomms_error *err) {
    uint8_t bin[32];
    opc__seal_ask ask;
    opcomms_err rc;
    if (key_file == NULL || hash == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    if (opc__plat_default() == NULL) return opc__err_set(err, OPCOMMS_E_UNSUPPORTED, 0, NULL);
    opc__seal_ask_init(&ask, password, password_user);
    rc = opc__seal_file_hash(opc__plat_default(), key_file, &ask, bin, err);
    if (rc == OPCOMMS_OK) opc__str_hash_write(bin, hash);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_pubk_hash_from_pem(const char *pem, size_t len, char hash[65],
                                                   opcomms_error *err) {
    return opcomms_pubk_hash_from_pem_with_password(pem, len, NULL, NULL, hash, err);
}

OPCOMMS_API opcomms_err opcomms_pubk_hash_from_pem_with_password(
    const char *pem, size_t len, opcomms_password_fn password, void *password_user, char hash[65],
    opcomms_error *err) {
    uint8_t bin[32];
    opc__key k;
    opc__seal_ask ask;
    opcomms_err rc;
    if (pem == NULL || hash == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    opc__seal_ask_init(&ask, password, password_user);
    rc = opc__seal_from_pem(&k, pem, len, &ask, err);
    if (rc != OPCOMMS_OK) return rc;
    opc__key_hash(&k, bin);
    opc__key_wipe(&k);
    opc__str_hash_write(bin, hash);
    return OPCOMMS_OK;
}

OPCOMMS_API opcomms_err opcomms_pubk_hash_from_cert_file(const char *path, char hash[65],
                                                         opcomms_error *err) {
    uint8_t bin[32];
    opcomms_err rc;
    if (path == NULL || hash == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    if (opc__plat_default() == NULL) return opc__err_set(err, OPCOMMS_E_UNSUPPORTED, 0, NULL);
    rc = opc__cert_file_hash(opc__plat_default(), path, bin, err);
    if (rc == OPCOMMS_OK) opc__str_hash_write(bin, hash);
    return rc;
}

/* Bits of an RSA key, 0 for P-256, -1 for what we do not make. */
OPC__FN int opc__pub_key_bits(opcomms_key_type type) {
    switch (type) {
    case OPCOMMS_KEY_P256: return 0;
    case OPCOMMS_KEY_RSA_2048: return 2048;
    case OPCOMMS_KEY_RSA_3072: return 3072;
    case OPCOMMS_KEY_RSA_4096: return 4096;
    default: return -1;
    }
}

OPCOMMS_API opcomms_err opcomms_generate_key_pem(opcomms_key_type type, char *out, size_t cap,
                                                 size_t *len, opcomms_error *err) {
    int bits = opc__pub_key_bits(type);
    if (out == NULL || cap == 0 || len == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    if (opc__plat_default() == NULL) return opc__err_set(err, OPCOMMS_E_UNSUPPORTED, 0, NULL);
    if (bits < 0) return opc__err_set(err, OPCOMMS_E_KEY_TYPE, 0, NULL);
    return opc__key_generate(opc__plat_default(), (unsigned)bits, out, cap, len, err);
}

/* 0 is the default; in *iterations then. */
OPC__FN int opc__pub_iterations(uint32_t *iterations) {
    if (*iterations == 0) *iterations = OPCOMMS_ITERATIONS;
    return *iterations >= OPC__SEAL_ITERATIONS_MIN && *iterations <= OPC__SEAL_ITERATIONS_MAX;
}

OPCOMMS_API opcomms_err opcomms_generate_key_pem_with_password(
    opcomms_key_type type, opcomms_password_fn password, void *password_user, uint32_t iterations,
    char *out, size_t cap, size_t *len, opcomms_error *err) {
    char buf[OPC__SEAL_PASSWORD_MAX];
    uint8_t der[OPC__KEY_DER_MAX];
    opc__seal_ask ask;
    size_t der_len = 0, n = 0;
    int bits = opc__pub_key_bits(type);
    opcomms_err rc;
    if (out == NULL || cap == 0 || len == NULL || password == NULL) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    if (!opc__pub_iterations(&iterations)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "iterations");
    }
    if (opc__plat_default() == NULL) return opc__err_set(err, OPCOMMS_E_UNSUPPORTED, 0, NULL);
    if (bits < 0) return opc__err_set(err, OPCOMMS_E_KEY_TYPE, 0, NULL);
    opc__seal_ask_init(&ask, password, password_user);
    rc = opc__seal_new_password(&ask, buf, &n, err);
    if (rc == OPCOMMS_OK) {
        rc = opc__key_generate_der(opc__plat_default(), (unsigned)bits, der, sizeof der, &der_len,
                                   err);
    }
    if (rc == OPCOMMS_OK) {
        rc = opc__seal_pem(opc__plat_default(), buf, n, iterations, der, der_len, out, cap, len,
                           err);
    }
    opc__mem_wipe(buf, sizeof buf);
    opc__mem_wipe(der, sizeof der);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_generate_key_file(const char *path, opcomms_key_type type,
                                                  opcomms_error *err) {
    char pem[OPC__KEY_PEM_MAX];
    size_t len = 0;
    opcomms_err rc;
    if (path == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    rc = opcomms_generate_key_pem(type, pem, sizeof pem, &len, err);
    if (rc == OPCOMMS_OK) rc = opc__plat_write_file_new(opc__plat_default(), path, pem, len, err);
    opc__mem_wipe(pem, sizeof pem);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_generate_key_file_with_password(
    const char *path, opcomms_key_type type, opcomms_password_fn password, void *password_user,
    uint32_t iterations, opcomms_error *err) {
    char pem[OPC__KEY_PEM_MAX];
    size_t len = 0;
    opcomms_err rc;
    if (path == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    rc = opcomms_generate_key_pem_with_password(type, password, password_user, iterations, pem,
                                                sizeof pem, &len, err);
    if (rc != OPCOMMS_OK) return rc;
    return opc__plat_write_file_new(opc__plat_default(), path, pem, len, err);
}

OPC__FN opcomms_err opc__pub_change_password(const opcomms_platform *plat, const char *path,
                                             const opc__seal_ask *was, const opc__seal_ask *now,
                                             uint32_t iterations, opcomms_error *err) {
    char pem[OPC__KEY_PEM_MAX];
    char *text = NULL;
    intptr_t dir = OPCOMMS_NO_HANDLE, file = OPCOMMS_NO_HANDLE;
    size_t len = 0, pem_len = 0;
    opc__mem mem;
    opcomms_err rc;
    opc__key_default_mem(&mem);
    /* Only to be refused: through a link the file behind it would keep its form, and its name would
       be replaced. */
    rc = opc__plat_open(plat, path, OPCOMMS_FILE_PRIVATE, &dir, &file, err);
    if (rc != OPCOMMS_OK) return rc;
    plat->file_close(plat->user, file);
    plat->dir_close(plat->user, dir);
    rc = opc__plat_read_file(plat, &mem, path, OPC__KEY_FILE_MAX, &text, &len, err);
    if (rc != OPCOMMS_OK) return rc;
    rc = opc__seal_change(plat, text, len, was, now, iterations, pem, sizeof pem, &pem_len, err);
    opc__mem_free_wiped(&mem, text, len + 1);
    if (rc == OPCOMMS_OK) rc = opc__plat_write_file_atomic(plat, path, pem, pem_len, err);
    opc__mem_wipe(pem, sizeof pem);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_change_key_password(
    const char *path, opcomms_password_fn password, void *password_user,
    opcomms_password_fn new_password, void *new_password_user, uint32_t iterations,
    opcomms_error *err) {
    opc__seal_ask was, now;
    if (path == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    if (!opc__pub_iterations(&iterations)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "iterations");
    }
    if (opc__plat_default() == NULL) return opc__err_set(err, OPCOMMS_E_UNSUPPORTED, 0, NULL);
    opc__seal_ask_init(&was, password, password_user);
    opc__seal_ask_init(&now, new_password, new_password_user);
    return opc__pub_change_password(opc__plat_default(), path, &was, &now, iterations, err);
}

/* `key_file` NULL: the CA's own. */
OPC__FN opcomms_err opc__pub_cert(const char *key_file, const char *ca_key_file,
                                  const opc__seal_ask *ask, char *out, size_t cap, size_t *len,
                                  opcomms_error *err) {
    uint8_t der[OPC__CERT_MAX];
    size_t der_len = 0;
    opc__key ca, key;
    opc__mem mem;
    opc__text t;
    opcomms_err rc = OPCOMMS_OK;
    if (out == NULL || cap == 0 || len == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    if (opc__plat_default() == NULL) return opc__err_set(err, OPCOMMS_E_UNSUPPORTED, 0, NULL);
    opc__key_default_mem(&mem);
    memset(&key, 0, sizeof key);
    if (key_file != NULL) {
        rc = opc__seal_load_file(opc__plat_default(), &mem, key_file, ask, &key, err);
        if (rc != OPCOMMS_OK) return rc;
    }
    if (ca_key_file == NULL) {
        opc__key_builtin_ca(&ca);
    } else {
        rc = opc__seal_load_file(opc__plat_default(), &mem, ca_key_file, ask, &ca, err);
    }
    if (rc == OPCOMMS_OK) {
        rc = key_file == NULL ? opc__cert_ca(&ca, der, sizeof der, &der_len, err)
                              : opc__cert_leaf(&key, &ca, der, sizeof der, &der_len, err);
    }
    opc__key_wipe(&key);
    opc__key_wipe(&ca);
    if (rc != OPCOMMS_OK) return rc;
    opc__text_init(&t, out, cap);
    opc__pem_encode(&t, "CERTIFICATE", der, der_len);
    if (t.cut) return opc__err_set(err, OPCOMMS_E_BUFFER, 0, NULL);
    *len = t.len;
    return OPCOMMS_OK;
}

OPCOMMS_API opcomms_err opcomms_make_cert(const char *key_file, const char *ca_key_file, char *out,
                                          size_t cap, size_t *len, opcomms_error *err) {
    return opcomms_make_cert_with_password(key_file, ca_key_file, NULL, NULL, out, cap, len, err);
}

OPCOMMS_API opcomms_err opcomms_make_cert_with_password(
    const char *key_file, const char *ca_key_file, opcomms_password_fn password,
    void *password_user, char *out, size_t cap, size_t *len, opcomms_error *err) {
    opc__seal_ask ask;
    opc__seal_ask_init(&ask, password, password_user);
    if (key_file == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    return opc__pub_cert(key_file, ca_key_file, &ask, out, cap, len, err);
}

OPCOMMS_API opcomms_err opcomms_make_ca_cert(const char *ca_key_file, char *out, size_t cap,
                                             size_t *len, opcomms_error *err) {
    return opcomms_make_ca_cert_with_password(ca_key_file, NULL, NULL, out, cap, len, err);
}

OPCOMMS_API opcomms_err opcomms_make_ca_cert_with_password(
    const char *ca_key_file, opcomms_password_fn password, void *password_user, char *out,
    size_t cap, size_t *len, opcomms_error *err) {
    opc__seal_ask ask;
    opc__seal_ask_init(&ask, password, password_user);
    return opc__pub_cert(NULL, ca_key_file, &ask, out, cap, len, err);
}

/* >>pub-log ==== L4 ==== public functions of a log without its peer */

OPCOMMS_API opcomms_err opcomms_log_verify(const char *path, opcomms_log_report *report,
                                           opcomms_error *err) {
    opc__look k;
    opc__mem mem;
    opcomms_err rc;
    if (path == NULL || (report != NULL && report->size < 8)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    if (opc__plat_default() == NULL) return opc__err_set(err, OPCOMMS_E_UNSUPPORTED, 0, NULL);
    opc__key_default_mem(&mem);
    rc = opc__look_read(&k, opc__plat_default(), &mem, path, 0, err);
    rc = opc__look_report(&k, report, rc);
    opc__look_close(&k);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_log_dump(const char *path, opcomms_log_entry_fn callback,
                                         void *user, opcomms_error *err) {
    opc__look k;
    opc__mem mem;
    opcomms_log_entry e;
    opcomms_err rc, rc2;
    size_t i;
    if (path == NULL || callback == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    if (opc__plat_default() == NULL) return opc__err_set(err, OPCOMMS_E_UNSUPPORTED, 0, NULL);
    opc__key_default_mem(&mem);
    rc = opc__look_read(&k, opc__plat_default(), &mem, path, 1, err);
    rc = opc__look_blind(&k, rc, err);
    for (i = 0; i < k.m.count; i++) {
        if (rc != OPCOMMS_OK && rc != OPCOMMS_E_LOG_DAMAGED) break;
        rc2 = opc__look_entry(&k, i, &e);
        if (rc2 != OPCOMMS_OK) rc = opc__err_set(err, rc2, 0, "log: cannot be read");
        if (rc2 != OPCOMMS_OK || callback(user, &e) != 0) break;
    }
    opc__look_close(&k);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_log_entry_read(const opcomms_log_entry *entry, uint64_t offset,
                                               void *buf, size_t len, size_t *got) {
    opc__look *k;
    if (entry == NULL || entry->handle == NULL || got == NULL || (buf == NULL && len > 0)) {
        return OPCOMMS_E_INVAL;
    }
    k = (opc__look *)entry->handle;
    return opc__log_read(&k->log->base, entry->offset, offset, (uint8_t *)buf, len, got);
}

OPCOMMS_API opcomms_err opcomms_log_repair(const char *path, const char *out_path,
                                           opcomms_log_report *report, opcomms_error *err) {
    opc__look k;
    opc__mem mem;
    opcomms_err rc;
    if (path == NULL || out_path == NULL || (report != NULL && report->size < 8)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    if (opc__plat_default() == NULL) return opc__err_set(err, OPCOMMS_E_UNSUPPORTED, 0, NULL);
    opc__key_default_mem(&mem);
    rc = opc__look_open(&k, opc__plat_default(), &mem, path, 1, err);
    if (rc == OPCOMMS_OK) rc = opc__look_run(&k, 1, err);
    rc = opc__look_blind(&k, rc, err);
    if (rc == OPCOMMS_OK || (rc == OPCOMMS_E_LOG_DAMAGED && k.c.buf != NULL)) {
        rc = opc__look_salvage(&k, out_path, err);
    }
    rc = opc__look_report(&k, report, rc);
    opc__look_close(&k);
    return rc;
}

/* >>pub-settings ==== L4 ==== public functions of settings files */

OPCOMMS_API opcomms_err opcomms_settings_load_text(const opcomms_allocator *alloc,
                                                   const char *text, size_t len, const char *dir,
                                                   opcomms_settings **out, opcomms_error *err) {
    opc__mem mem;
    if (text == NULL || out == NULL || !opc__settings_mem(alloc, &mem)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    return opc__settings_new(&mem, text, len, dir, dir != NULL ? strlen(dir) : 0, out, err);
}

OPCOMMS_API opcomms_err opcomms_settings_load(const opcomms_allocator *alloc, const char *path,
                                              opcomms_settings **out, opcomms_error *err) {
    char *text = NULL;
    size_t len = 0, dir_len;
    opc__mem mem;
    opcomms_err rc;
    if (path == NULL || out == NULL || !opc__settings_mem(alloc, &mem)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    if (opc__plat_default() == NULL) return opc__err_set(err, OPCOMMS_E_UNSUPPORTED, 0, NULL);
    rc = opc__plat_read_file(opc__plat_default(), &mem, path, OPC__LIST_FILE_MAX, &text, &len, err);
    if (rc != OPCOMMS_OK) return rc;
    dir_len = strlen(path);
    while (dir_len > 0 && path[dir_len - 1] != '/') dir_len--;
    rc = opc__settings_new(&mem, text, len, path, dir_len, out, err);
    opc__mem_free(&mem, text, len + 1);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_settings_config(const opcomms_settings *settings,
                                                opcomms_config *cfg) {
    uint32_t i;
    if (settings == NULL || cfg == NULL) return OPCOMMS_E_INVAL;
    for (i = 0; i < OPC__SETTINGS_KEYS; i++) { /* all fit, or none is written */
        const opc__settings_key *k = &opc__settings_keys[i];
        if (settings->line[i] == 0 || k->at >= sizeof *cfg) continue;
        if (k->at + opc__settings_bytes(k) > cfg->size) return OPCOMMS_E_INVAL;
    }
    for (i = 0; i < OPC__SETTINGS_KEYS; i++) {
        const opc__settings_key *k = &opc__settings_keys[i];
        if (settings->line[i] == 0 || k->at >= sizeof *cfg) continue;
        if (k->kind == OPC__SETTINGS_FLAG) {
            uint32_t bit = (uint32_t)k->max;
            cfg->flags = (cfg->flags & ~bit) | (settings->cfg.flags & bit);
            continue;
        }
        memcpy((uint8_t *)cfg + k->at, (const uint8_t *)settings + k->at, opc__settings_bytes(k));
    }
    return OPCOMMS_OK;
}

OPCOMMS_API void opcomms_settings_free(opcomms_settings *settings) {
    if (settings != NULL) opc__settings_destroy(settings);
}

/* >>pub ==== L4 ==== public functions of the peer: check, lock, call, translate */

OPCOMMS_API const opcomms_platform *opcomms_platform_default(void) { return opc__plat_default(); }

OPCOMMS_API const char *opcomms_version(void) { return OPCOMMS_VERSION_STRING; }

OPCOMMS_API const char *opcomms_err_text(opcomms_err code) { return opc__err_text(code); }

OPCOMMS_API int opcomms_err_severity(opcomms_err code) {
    switch (code) {
#define OPCOMMS__X(name, value, severity, text) \
    case name: return severity;
        OPCOMMS_ERRORS(OPCOMMS__X)
#undef OPCOMMS__X
    case OPCOMMS_E_LAST_: break;
    }
    return 3;
}

OPCOMMS_API void opcomms_config_init(opcomms_config *cfg) {
    if (cfg == NULL) return;
    memset(cfg, 0, sizeof *cfg);
    cfg->size = (uint32_t)sizeof *cfg;
}

OPC__FN void opc__pub_default(uint32_t *field, uint32_t value) {
    if (*field == 0) *field = value;
}

OPC__FN void opc__pub_defaults(opcomms_config *out) {
    opc__pub_default(&out->sync_interval_ms, 1000);
    opc__pub_default(&out->connections_max, 64);
    opc__pub_default(&out->connections_per_address, 16);
    opc__pub_default(&out->handshakes_max, 16);
    opc__pub_default(&out->handshakes_per_second, 100);
    opc__pub_default(&out->handshake_timeout_ms, 10000);
    opc__pub_default(&out->idle_timeout_ms, 300000);
    opc__pub_default(&out->send_timeout_ms, 10000);
    opc__pub_default(&out->messages_max, 100000);
    opc__pub_default(&out->queue_depth_max, 10000);
    opc__pub_default(&out->frame_bytes_max, OPCOMMS_MAX_FRAME);
    opc__pub_default(&out->rate_capacity, 10000);
    opc__pub_default(&out->rate_per_second, 100);
    opc__pub_default(&out->rate_cost, 1);
    opc__pub_default(&out->queued_max, 100000);
    opc__pub_default(&out->queued_per_destination_max, out->queued_max);
    opc__pub_default(&out->destinations_max, 4096);
    opc__pub_default(&out->retry_min_ms, 100);
    opc__pub_default(&out->retry_max_ms, 10000);
    opc__pub_default(&out->window_messages, 16384);
    opc__pub_default(&out->streams_max, 16384);
    if (out->queued_bytes_max == 0) out->queued_bytes_max = (uint64_t)256 << 20;
    if (out->window_bytes == 0) out->window_bytes = (uint64_t)8 << 20;
    if (out->message_bytes_max == 0) out->message_bytes_max = OPCOMMS_MAX_FRAME;
    if (out->log_bytes_max == 0) out->log_bytes_max = (uint64_t)1 << 30;
    if (out->memory_bytes_max == 0) out->memory_bytes_max = (uint64_t)64 << 20;
}

/* Copies the caller's config, which may be of an older and shorter version, and fills in. */
OPC__FN opcomms_err opc__pub_config(const opcomms_config *cfg, opcomms_config *out,
                                    opcomms_error *err) {
    if (cfg == NULL || cfg->size < offsetof(opcomms_config, log_bytes_max) ||
        cfg->size > 4096u) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "cfg.size: use opcomms_config_init");
    }
    memset(out, 0, sizeof *out);
    memcpy(out, cfg, cfg->size < sizeof *out ? cfg->size : sizeof *out);
    if (out->flags & ~(OPCOMMS_NO_BACKGROUND | OPCOMMS_MEMORY_STORE | OPCOMMS_NO_LISTEN |
                       OPCOMMS_NO_RESUMPTION | OPCOMMS_TARPC_ONLY | OPCOMMS_NATIVE_ONLY |
                       OPCOMMS_ENCRYPT_LOG | OPCOMMS_DECRYPT_LOG)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "cfg.flags");
    }
    if (out->flags & (OPCOMMS_ENCRYPT_LOG | OPCOMMS_DECRYPT_LOG)
            ? (out->flags & OPCOMMS_ENCRYPT_LOG && out->flags & OPCOMMS_DECRYPT_LOG) ||
                  out->log_password_new != NULL
            : out->log_password_new != NULL && out->log_password == NULL) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "cfg: encrypt or decrypt the log");
    }
    if (out->allow == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, "cfg.allow is required");
    if (out->routes == NULL) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "cfg.routes is required");
    }
    if ((out->key_file != NULL) == (out->key_pem != NULL)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "give cfg.key_file or cfg.key_pem");
    }
    if ((int)out->durability < 0 || out->durability > OPCOMMS_DURABLE_NEVER) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "cfg.durability");
    }
    opc__pub_defaults(out);
    if (out->connections_max > 1024u || out->frame_bytes_max > OPCOMMS_MAX_FRAME ||
        out->messages_max > 0x1000000u || out->mailboxes_max > 0x80000u ||
        out->frame_bytes_max < 1024u || out->sync_interval_ms > 3600000u ||
        out->protocol > OPCOMMS_PROTOCOL_NEWER || out->rate_cost > out->rate_capacity ||
        (out->rate_capacity != OPCOMMS_UNLIMITED && out->rate_capacity > 1000000000u) ||
        out->queued_max > 0x1000000u || out->queued_per_destination_max > 0x1000000u ||
        out->destinations_max > OPC__OUTBOX_DESTS_MAX || out->attempts_max > 0xffffu ||
        out->retry_min_ms > out->retry_max_ms || out->retry_max_ms > 86400000u ||
        out->window_messages > 0x1000000u || out->window_bytes > ((uint64_t)1 << 40) ||
        out->message_bytes_max > OPCOMMS_MAX_FRAME || out->streams_max > 0x1000000u ||
        (out->flags & (OPCOMMS_TARPC_ONLY | OPCOMMS_NATIVE_ONLY)) ==
            (OPCOMMS_TARPC_ONLY | OPCOMMS_NATIVE_ONLY)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "a limit in cfg is out of range");
    }
    return OPCOMMS_OK;
}

/* What the outbox keeps of a message for those who send it. */
OPC__FN void opc__pub_queued_as(opcomms_peer *p, uint32_t i, const opc__msg_meta *m) {
    opc__entry *e = opc__items_at(&p->items, i);
    opc__dest *d = &p->outbox.dests[e->box];
    e->text = (m->flags & OPC__MSG_TEXT) != 0;
    e->native = (m->options & 1u) != 0;
    if (m->level == OPC__LEVEL_RECEIVED) d->wants |= 1u;
    if (m->level == OPC__LEVEL_CONSUMED) d->wants |= 2u;
}

/* ---- what the store tells ---- */

/* Messages found at open. */
OPC__FN opcomms_err opc__pub_found(void *user, uint64_t uid, uint64_t ref,
                                   const opc__msg_meta *meta) {
    opcomms_peer *p = (opcomms_peer *)user;
    uint32_t box = 0;
    opcomms_err rc;
    if (meta->kind != OPC__KIND_IN) {
        rc = opc__outbox_found(&p->outbox, meta, uid, ref);
        if (rc == OPCOMMS_OK && meta->kind == OPC__KIND_OUT) {
            opc__pub_queued_as(p, opc__items_find(&p->items, uid), meta);
        }
        return rc;
    }
    rc = opc__mailbox_open(&p->mailbox, meta->dest, meta->dest_len, meta->dest_id, &box);
    if (rc == OPCOMMS_OK) rc = opc__mailbox_reserve(&p->mailbox, box, meta->from);
    if (rc != OPCOMMS_OK) return rc;
    opc__mailbox_add(&p->mailbox, box, meta->from, uid, ref, 0, meta->bytes);
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__pub_seen(void *user, const opc__msg_meta *meta) {
    return opc__numbers_recover_seen(&((opcomms_peer *)user)->numbers, meta);
}

OPC__FN opcomms_err opc__pub_note(void *user, unsigned type, const uint8_t *body, size_t n) {
    opcomms_peer *p = (opcomms_peer *)user;
    if (type != OPC__NOTE_STATE) return opc__numbers_recover_note(&p->numbers, type, body, n);
    if (n > OPC__STATE_MAX) return OPCOMMS_E_LOG_DAMAGED;
    if (p->state == NULL) p->state = (uint8_t *)opc__mem_alloc(&p->mem, OPC__STATE_MAX);
    if (p->state == NULL) return OPCOMMS_E_NOMEM;
    if (n > 0) memcpy(p->state, body, n);
    p->state_len = (uint32_t)n;
    p->state_there = 1;
    return OPCOMMS_OK;
}

OPC__FN int opc__pub_live(void *user, uint64_t uid) {
    const opc__items *t = &((opcomms_peer *)user)->items;
    uint32_t i = opc__items_find(t, uid);
    if (i == OPC__ITEMS_NONE) return 0;
    if (opc__items_at(t, i)->kind == OPC__KIND_IN) return 1;
    return 1 + (int)opc__outbox_attempts(opc__items_at(t, i));
}

OPC__FN void opc__pub_moved(void *user, uint64_t uid, uint64_t ref) {
    opc__items_moved(&((opcomms_peer *)user)->items, uid, ref);
}

OPC__FN opcomms_err opc__pub_emit(void *user, unsigned type, const uint8_t *body, size_t n) {
    opcomms_peer *p = (opcomms_peer *)user;
    uint64_t position = 0;
    return p->store->c->note(p->store, type, body, n, &position);
}

/* All notes anew, for a log that is compacted. */
OPC__FN opcomms_err opc__pub_notes(void *user) {
    opcomms_peer *p = (opcomms_peer *)user;
    opcomms_err rc = opc__numbers_notes(&p->numbers, opc__pub_emit, p);
    if (rc == OPCOMMS_OK && p->state_there) {
        rc = opc__pub_emit(p, OPC__NOTE_STATE, p->state, p->state_len);
    }
    return rc;
}

/* A compacted log has taken the place of the old one: what is being read goes on in the new. */
OPC__FN void opc__pub_switched(void *user, int done) {
    opcomms_peer *p = (opcomms_peer *)user;
    uint32_t i, k;
    opc__items_switched(&p->items, done);
    if (!done) return;
    for (i = 0; i < p->slots_count; i++) {
        opc__slot *s = p->slots[i];
        opc__conn *c = &s->conn;
        if (s->mail != NULL && s->mail->busy) {
            uint32_t e = opc__items_find(&p->items, s->mail->uid);
            if (e != OPC__ITEMS_NONE) {
                s->mail->call.ref = opc__items_ref(&p->items, e);
            } else {
                opc__conn_kill(c, OPCOMMS_E_CLOSED); /* cancelled in the middle of it */
            }
        }
        for (k = 0; k < c->reply_count; k++) {
            opc__reply *r = &c->reply[(c->reply_first + k) % OPC__CONN_REPLIES];
            uint32_t e;
            if (r->kind != OPC__RES_GET || !r->flag) continue;
            e = opc__items_find(&p->items, r->uid);
            if (e != OPC__ITEMS_NONE) {
                r->ref = opc__items_ref(&p->items, e);
            } else {
                opc__conn_kill(c, OPCOMMS_E_CLOSED); /* acknowledged while it was being fetched */
            }
        }
    }
}

/* Opens the log with what the config says of its encryption, and makes it so. */
OPC__FN opcomms_err opc__pub_open_log(opcomms_peer *p, opc__log_options *o, opcomms_error *err) {
    const opcomms_config *cfg = &p->cfg;
    opc__seal_ask ask, fresh;
    uint8_t secret[32];
    opcomms_err rc;
    opc__seal_ask_init(&ask, cfg->log_password, cfg->log_password_user);
    opc__seal_ask_init(&fresh, cfg->log_password_new, cfg->log_password_new_user);
    opc__seal_secret(&p->key, secret);
    o->secret.key = secret;
    if (ask.password != NULL) o->secret.password = &ask;
    if (fresh.password != NULL) o->secret.fresh = &fresh;
    o->secret.want = cfg->flags & OPCOMMS_DECRYPT_LOG   ? OPC__LOG_DECRYPT
                     : cfg->flags & OPCOMMS_ENCRYPT_LOG ? OPC__LOG_BY_KEY
                     : ask.password != NULL             ? OPC__LOG_BY_PASSWORD
                                                        : OPC__LOG_CLEAR;
    rc = opc__log_open(o, &p->store, err);
    opc__mem_wipe(secret, sizeof secret);
    if (rc != OPCOMMS_OK || !opc__log_of(p->store)->convert) return rc;
    rc = opc__log_convert(p->store, err);
    if (rc == OPCOMMS_OK) {
        opc__peer_say(p, OPCOMMS_LOG_INFO, "log: written anew, ",
                      o->secret.want == OPC__LOG_DECRYPT ? "in the clear" : "encrypted");
    }
    return rc;
}

OPC__FN opcomms_err opc__pub_open_store(opcomms_peer *p, opcomms_error *err) {
    const opcomms_config *cfg = &p->cfg;
    char path[OPC__PATH_MAX];
    opc__log_options o;
    opc__store_owner owner;
    opc__text t;
    opcomms_err rc;
    uint32_t puts = 2 * cfg->connections_max + 2;
    if (cfg->flags & OPCOMMS_MEMORY_STORE) {
        rc = opc__ram_open(&p->mem, puts, cfg->log_bytes_max, &p->store);
        if (rc == OPCOMMS_OK) {
            opc__ram *r = (opc__ram *)(void *)p->store;
            rc = p->plat->random(p->plat->user, &r->epoch.random, sizeof r->epoch.random);
            if (rc != OPCOMMS_OK) rc = OPCOMMS_E_RANDOM;
            if (r->epoch.random == 0) r->epoch.random = 1;
        }
        return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, "memory store");
    }
    opc__text_init(&t, path, sizeof path);
    if (cfg->log_path != NULL) {
        opc__text_str(&t, cfg->log_path);
    } else {
        opc__text_str(&t, "opcomms-");
        opc__text_bytes(&t, p->hash_text, 16);
        opc__text_str(&t, ".log");
    }
    if (t.cut) return opc__err_set(err, OPCOMMS_E_INVAL, 0, "cfg.log_path is too long");
    memset(&owner, 0, sizeof owner);
    owner.user = p;
    owner.found = opc__pub_found;
    owner.seen = opc__pub_seen;
    owner.note = opc__pub_note;
    owner.live = opc__pub_live;
    owner.moved = opc__pub_moved;
    owner.notes = opc__pub_notes;
    owner.switched = opc__pub_switched;
    memset(&o, 0, sizeof o);
    o.owner = &owner;
    o.plat = p->plat;
    o.mem = &p->mem;
    o.path = path;
    memcpy(o.key_hash, p->hash, 32);
    o.durability = (int)cfg->durability;
    o.puts_max = puts;
    if (cfg->durability != OPCOMMS_DURABLE_NEVER) { /* it speeds up syncs, nothing else */
        uint64_t part = cfg->log_bytes_max / 16;
        o.ahead_bytes = part < OPC__LOG_AHEAD ? (uint32_t)part : OPC__LOG_AHEAD;
    }
    o.log_bytes_max = cfg->log_bytes_max;
    /* What was accepted once is kept, whatever the limits say now. */
    p->mailbox.entries_max = 0x7fffffffu;
    p->mailbox.depth_max = 0x7fffffffu;
    p->mailbox.foreign_max = 0x7fffffffu;
    rc = opc__pub_open_log(p, &o, err);
    if (rc == OPCOMMS_OK && opc__log_of(p->store)->cut > 0) {
        char cut[24];
        opc__text_init(&t, cut, sizeof cut);
        opc__text_u64(&t, opc__log_of(p->store)->cut);
        opc__peer_say(p, OPCOMMS_LOG_WARNING, "log: bytes of unfinished writes cut off: ", cut);
    }
    p->mailbox.entries_max = cfg->messages_max;
    p->mailbox.depth_max = cfg->queue_depth_max;
    p->mailbox.foreign_max = cfg->mailboxes_max;
    return rc;
}

OPC__FN opcomms_err opc__pub_open_keys(opcomms_peer *p, opcomms_error *err) {
    const opcomms_config *cfg = &p->cfg;
    opc__key ca;
    opc__seal_ask ask;
    opcomms_err rc;
    opc__seal_ask_init(&ask, cfg->password, cfg->password_user);
    if (cfg->key_file != NULL) {
        rc = opc__seal_load_file(p->plat, &p->mem, cfg->key_file, &ask, &p->key, err);
    } else {
        rc = opc__seal_from_pem(&p->key, cfg->key_pem, cfg->key_pem_bytes, &ask, err);
    }
    if (rc != OPCOMMS_OK) return rc;
    opc__key_hash(&p->key, p->hash);
    opc__str_hash_write(p->hash, p->hash_text);
    if (cfg->ca_key_file != NULL) {
        rc = opc__seal_load_file(p->plat, &p->mem, cfg->ca_key_file, &ask, &ca, err);
        if (rc != OPCOMMS_OK) return rc;
    } else {
        opc__key_builtin_ca(&ca);
    }
    rc = opc__tls_ctx_init(&p->tls, &p->key, &ca, cfg->ca_key_file != NULL, err);
    opc__key_wipe(&ca);
    p->tls.native = !(cfg->flags & OPCOMMS_TARPC_ONLY);
    return rc;
}

OPC__FN opcomms_err opc__pub_listen(opcomms_peer *p, opcomms_error *err) {
    const char *text = p->cfg.address != NULL ? p->cfg.address : "0.0.0.0:0";
    opcomms_address address;
    opcomms_err rc;
    int os = 0;
    memset(&address, 0, sizeof address);
    if (p->cfg.flags & OPCOMMS_NO_LISTEN) return OPCOMMS_OK;
    rc = opc__id_address_parse(text, strlen(text), &address);
    if (rc != OPCOMMS_OK) return opc__err_set(err, OPCOMMS_E_ADDRESS, 0, text);
    rc = p->plat->tcp_listen(p->plat->user, &address, &p->listener, &p->bound, &os);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, os, text);
}

OPC__FN opcomms_err opc__pub_tables(opcomms_peer *p, opcomms_error *err) {
    uint32_t n = p->cfg.connections_max;
    int os = 0;
    opcomms_err rc;
    p->slots = (opc__slot **)opc__mem_array(&p->mem, n, sizeof *p->slots);
    p->links = (opc__link **)opc__mem_array(&p->mem, n, sizeof *p->links);
    p->fds = (opcomms_pollfd *)opc__mem_array(&p->mem, n + 2u, sizeof *p->fds);
    p->fds_slot = (opc__slot **)opc__mem_array(&p->mem, n + 2u, sizeof *p->fds_slot);
    if (p->slots == NULL || p->links == NULL || p->fds == NULL || p->fds_slot == NULL) {
        return opc__err_set(err, OPCOMMS_E_NOMEM, 0, NULL);
    }
    if (!(p->cfg.flags & OPCOMMS_NO_RESUMPTION)) {
        p->sessions.s = (opc__session *)opc__mem_array(&p->mem, n, sizeof *p->sessions.s);
        if (p->sessions.s == NULL) return opc__err_set(err, OPCOMMS_E_NOMEM, 0, NULL);
        p->sessions.count = n;
        p->kept.s = (opc__session *)opc__mem_array(&p->mem, n, sizeof *p->kept.s);
        if (p->kept.s == NULL) return opc__err_set(err, OPCOMMS_E_NOMEM, 0, NULL);
        p->kept.count = n;
    }
    rc = p->plat->wake_open(p->plat->user, p->wake, &os);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, os, "wake handle");
    p->wake_ready = 1;
    return OPCOMMS_OK;
}

/* Releases everything but the memory of p. Works on a half-opened peer. */
OPC__FN opcomms_err opc__pub_close(opcomms_peer *p) {
    opcomms_err rc = OPCOMMS_OK;
    while (p->slots_count > 0) opc__node_slot_close(p, p->slots_count - 1);
    opc__node_directs(p); /* who waits for an answer learns that there will be none */
    while (p->links_count > 0) opc__link_free(p, p->links_count - 1);
    if (p->listener != OPCOMMS_NO_HANDLE) p->plat->sock_close(p->plat->user, p->listener);
    p->listener = OPCOMMS_NO_HANDLE;
    if (p->allow_watched) opc__allow_unwatch(p->allow, opc__peer_wake, p);
    p->allow_watched = 0;
    if (p->store != NULL) {
        p->stats.log_bytes = p->store->c->bytes(p->store);
        rc = p->store->c->close(p->store);
    }
    p->store = NULL;
    return p->failed != OPCOMMS_OK ? p->failed : rc;
}

OPC__FN void opc__pub_messages_free(opcomms_peer *p) {
    uint32_t i;
    for (i = 0; i < p->messages_blocks; i++) {
        opc__mem_free(&p->mem, p->messages[i], OPC__PEER_MESSAGES * sizeof **p->messages);
    }
    opc__mem_free(&p->mem, p->messages, OPC__PEER_BLOCKS * sizeof *p->messages);
    p->messages = NULL;
    p->messages_blocks = 0;
}

OPC__FN void opc__pub_destroy(opcomms_peer *p) {
    opc__mem mem;
    uint32_t n = p->cfg.connections_max;
    (void)opc__pub_close(p); /* reported by opcomms_stop; free has no way to */
    opc__mailbox_free(&p->mailbox);
    opc__outbox_free(&p->outbox);
    opc__numbers_free(&p->numbers);
    opc__items_free(&p->items);
    opc__mem_free(&p->mem, p->state, OPC__STATE_MAX);
    opc__peer_lent_free(p);
    opc__pub_messages_free(p);
    if (p->wake_ready) p->plat->wake_close(p->plat->user, p->wake);
    opc__mem_free(&p->mem, p->slots, (size_t)n * sizeof *p->slots);
    opc__mem_free(&p->mem, p->links, (size_t)n * sizeof *p->links);
    opc__mem_free(&p->mem, p->fds, ((size_t)n + 2u) * sizeof *p->fds);
    opc__mem_free(&p->mem, p->fds_slot, ((size_t)n + 2u) * sizeof *p->fds_slot);
    opc__mem_free_wiped(&p->mem, p->sessions.s, p->sessions.count * sizeof *p->sessions.s);
    opc__mem_free_wiped(&p->mem, p->kept.s, p->kept.count * sizeof *p->kept.s);
    opc__key_wipe(&p->key);
    opcomms_allow_list_release(p->allow);
    opcomms_routing_table_release(p->routes);
#if !defined(OPCOMMS_NO_THREADS)
    opc__cond_destroy(&p->flush_start);
#endif
    opc__cond_destroy(&p->changed);
    opc__mutex_destroy(&p->lock);
    mem = p->mem;
    opc__mem_free_wiped(&mem, p, sizeof *p);
}

OPC__FN int opc__pub_locks(opcomms_peer *p) {
    if (!opc__mutex_init(&p->lock)) return 0;
    if (!opc__cond_init(&p->changed)) {
        opc__mutex_destroy(&p->lock);
        return 0;
    }
#if !defined(OPCOMMS_NO_THREADS)
    if (!opc__cond_init(&p->flush_start)) {
        opc__cond_destroy(&p->changed);
        opc__mutex_destroy(&p->lock);
        return 0;
    }
#endif
    return 1;
}

/* What is remembered of messages, empty so far. */
OPC__FN void opc__pub_open_tables(opcomms_peer *p) {
    opc__outbox_limits l;
    memset(&l, 0, sizeof l);
    l.messages_max = p->cfg.queued_max;
    l.depth_max = p->cfg.queued_per_destination_max;
    l.dests_max = p->cfg.destinations_max;
    l.retry_min_ms = p->cfg.retry_min_ms;
    l.retry_max_ms = p->cfg.retry_max_ms;
    l.bytes_max = p->cfg.queued_bytes_max;
    opc__items_init(&p->items, &p->mem);
    opc__outbox_init(&p->outbox, &p->mem, &p->items, &l);
    opc__numbers_init(&p->numbers, &p->mem, p->hash, p->cfg.streams_max, p->cfg.streams_max,
                      p->spans);
}

/* The rest of new, once the peer's memory and locks stand. */
OPC__FN opcomms_err opc__pub_open(opcomms_peer *p, opcomms_error *err) {
    opc__epoch now;
    opcomms_err rc = opc__pub_open_keys(p, err);
    if (rc != OPCOMMS_OK) return rc;
    rc = opc__pub_tables(p, err);
    if (rc != OPCOMMS_OK) return rc;
    rc = p->plat->random(p->plat->user, &p->spans, sizeof p->spans);
    if (rc != OPCOMMS_OK) return opc__err_set(err, OPCOMMS_E_RANDOM, 0, NULL);
    rc = opc__pub_listen(p, err); /* first: a port in use must not touch the log */
    if (rc != OPCOMMS_OK) return rc;
    opc__pub_open_tables(p);
    opc__mailbox_init(&p->mailbox, &p->mem, &p->items, p->hash, p->cfg.messages_max,
                      p->cfg.queue_depth_max, p->cfg.mailboxes_max);
    rc = opc__pub_open_store(p, err);
    if (rc != OPCOMMS_OK) return rc;
    p->store->c->epoch(p->store, &now); /* no number of another opening is one of this */
    p->direct_first = (now.random & 0x7fffffffu) << 32;
    p->direct_number = p->direct_first;
    rc = opc__mailbox_open(&p->mailbox, (const uint8_t *)p->hash_text, 64, 0, &p->own_box);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, NULL);
    opc__peer_visible(p);
    rc = opc__allow_watch(p->allow, opc__peer_wake, p);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, "allow list");
    p->allow_watched = 1;
    p->allow_seen = opc__allow_generation(p->allow);
    p->flushed_us = opc__peer_now(p);
    opc__limit_init(&p->limit, p->flushed_us, p->cfg.handshakes_per_second);
    rc = opc__run_start(p);
    if (rc != OPCOMMS_OK) return opc__err_set(err, rc, 0, "background thread");
    return OPCOMMS_OK;
}

OPCOMMS_API opcomms_err opcomms_new(const opcomms_config *cfg, opcomms_peer **out,
                                    opcomms_error *err) {
    opcomms_config full;
    opc__mem mem;
    opcomms_peer *p;
    opcomms_err rc;
    if (out == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, "out");
    rc = opc__pub_config(cfg, &full, err);
    if (rc != OPCOMMS_OK) return rc;
    memset(&mem, 0, sizeof mem);
    mem.alloc = opc__plat_malloc;
    mem.release = opc__plat_free;
    if (full.allocator != NULL) {
        if (full.allocator->alloc == NULL || full.allocator->release == NULL) {
            return opc__err_set(err, OPCOMMS_E_INVAL, 0, "cfg.allocator");
        }
        mem.alloc = full.allocator->alloc;
        mem.release = full.allocator->release;
        mem.user = full.allocator->user;
    }
    mem.limit = full.memory_bytes_max > SIZE_MAX ? SIZE_MAX : (size_t)full.memory_bytes_max;
    p = (opcomms_peer *)opc__mem_alloc(&mem, sizeof *p);
    if (p == NULL) return opc__err_set(err, OPCOMMS_E_NOMEM, 0, NULL);
    p->mem = mem;
    p->cfg = full;
    p->plat = full.platform != NULL ? full.platform : opc__plat_default();
    p->listener = OPCOMMS_NO_HANDLE;
    if (p->plat == NULL || p->plat->size < offsetof(opcomms_platform, file_locked) ||
        !opc__pub_locks(p)) {
        opc__mem_free(&mem, p, sizeof *p);
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "cfg.platform");
    }
    opcomms_allow_list_retain(full.allow);
    opcomms_routing_table_retain(full.routes);
    p->allow = full.allow;
    p->routes = full.routes;
    rc = opc__pub_open(p, err);
    if (rc != OPCOMMS_OK) {
        p->stopping = 1;
        opc__run_end(p);
        opc__pub_destroy(p);
        return rc;
    }
    p->cfg.address = p->cfg.key_file = p->cfg.key_pem = p->cfg.ca_key_file = p->cfg.log_path = NULL;
    p->cfg.allocator = NULL;
    p->cfg.password = NULL;
    p->cfg.password_user = NULL;
    *out = p;
    return OPCOMMS_OK;
}

/* Waits a while for something to change; the lock is held before and after. */
OPC__FN void opc__pub_rest(opcomms_peer *p, uint64_t left_us) {
    if (p->cfg.flags & OPCOMMS_NO_BACKGROUND) {
        int32_t ms = left_us > 1000000u ? 1000 : (int32_t)((left_us + 999u) / 1000u);
        opc__peer_unlock(p);
        (void)opc__run_pump(p, ms);
        opc__mutex_lock(&p->lock);
    } else {
        opc__cond_wait(&p->changed, &p->lock, left_us);
    }
}

/* How much of a time-out that began at `start` is left; 0: nothing. */
OPC__FN int opc__pub_left(const opcomms_peer *p, uint64_t start, uint32_t timeout_ms,
                          uint64_t *left_us) {
    uint64_t passed = opc__peer_now(p) - start, most = (uint64_t)timeout_ms * 1000u;
    *left_us = UINT64_MAX;
    if (timeout_ms == OPCOMMS_FOREVER) return 1;
    if (passed >= most) return 0;
    *left_us = most - passed;
    return 1;
}

/* ---- arguments ---- */

OPC__FN opcomms_err opc__pub_key(const char *hash, uint8_t key[32], opcomms_error *err) {
    if (hash != NULL && opc__str_hash_parse(hash, strlen(hash), key)) return OPCOMMS_OK;
    return opc__err_set(err, OPCOMMS_E_INVAL, 0, "the hash is 64 lower-case hex digits");
}

/* Of somebody who listens there: the port is not 0. */
OPC__FN opcomms_err opc__pub_address(const char *address, opcomms_address *to,
                                     opcomms_error *err) {
    memset(to, 0, sizeof *to);
    if (address != NULL && opc__id_address_parse(address, strlen(address), to) == OPCOMMS_OK &&
        to->port != 0) {
        return OPCOMMS_OK;
    }
    return opc__err_set(err, OPCOMMS_E_ADDRESS, 0, address);
}

/* ---- sending natively ---- */

/* Sends what there is on a connection now, from this thread. */
OPC__FN void opc__pub_push(opcomms_peer *p, opc__slot *s) {
    if (p->pumping) return; /* another thread steps, with the lock open: it will */
    opc__node_slot_pump(p, s, opc__peer_now(p));
    if (opc__node_unsent(&s->conn) || s->conn.state == OPC__CONN_DEAD || p->more) opc__peer_kick(p);
}

/* A call has waited in vain for a connection that is being made. When that takes long it is given
   up, so that the next call makes a new one. */
OPC__FN void opc__pub_doubt(opcomms_peer *p, const opc__call *call) {
    opc__slot *s = opc__node_dialed(p, call->server, &call->to);
    if (s == NULL || s->admitted) return;
    if (opc__peer_since(opc__peer_now(p), s->since_us) < OPC__LINK_SILENT_US) return;
    opc__conn_kill(&s->conn, OPCOMMS_E_TIMEOUT);
    s->over = 1; /* other calls that wait for it begin anew as well */
    opc__peer_unreached(p, s->hash, &s->address, OPCOMMS_E_TIMEOUT);
    opc__peer_kick(p);
}

/* A call whose time is up, wherever it is. */
OPC__FN void opc__pub_give_up(opcomms_peer *p, opc__call *call) {
    uint32_t i;
    int there = opc__call_unlink(&p->directs, call);
    if (there && call->to.family != 0) opc__pub_doubt(p, call);
    for (i = 0; i < p->slots_count && !there; i++) {
        if (p->slots[i]->flow != NULL) there = opc__flow_forget(p->slots[i]->flow, call);
    }
    OPCOMMS_ASSERT(there);
    opc__peer_answer(p, call, call->written ? OPCOMMS_E_UNKNOWN_OUTCOME : OPCOMMS_E_TIMEOUT, NULL);
}

/* Carries a call through natively; the lock is held before and after. call->tarpc: that peer does
   not speak it. */
OPC__FN void opc__pub_native(opcomms_peer *p, opc__call *call) {
    opc__cond wake;
    if (!opc__cond_init(&wake)) {
        call->result = opc__err_set(&call->detail, OPCOMMS_E_NOMEM, 0, NULL);
        call->done = 1;
        return;
    }
    call->wake = &wake;
    opc__flow_link(&p->directs, call);
    opc__node_directs(p);
    if (!call->done) {
        opc__slot *s = opc__node_find(p, call->server, &call->to);
        if (s != NULL) opc__pub_push(p, s);
    }
    while (!call->done) {
        uint64_t now = opc__peer_now(p);
        if (now >= call->deadline_us) {
            opc__pub_give_up(p, call);
        } else if (p->cfg.flags & OPCOMMS_NO_BACKGROUND) {
            opc__pub_rest(p, call->deadline_us - now);
        } else {
            opc__cond_wait(&wake, &p->lock, call->deadline_us - now);
        }
    }
    opc__cond_destroy(&wake);
}

/* Sends a message to the peer itself: natively, if it can do that. 1: done, the result is in the
   call; 0: it has to go by tarpc. */
OPC__FN int opc__pub_try_native(opcomms_peer *p, opc__call *call, const char *hash,
                                const char *address, uint32_t timeout_ms) {
    opcomms_err rc = OPCOMMS_OK;
    int tarpc;
    if (p->cfg.flags & OPCOMMS_TARPC_ONLY) return 0;
    if (address != NULL && opc__pub_address(address, &call->to, NULL) != OPCOMMS_OK) {
        return 0; /* the other way tells what is wrong */
    }
    if (!opc__allow_check(p->allow, call->server, address != NULL ? &call->to : NULL)) {
        rc = opc__err_set(&call->detail, OPCOMMS_E_NOT_ALLOWED, 0, "our own allow list");
    }
    opc__mutex_lock(&p->lock);
    if (rc != OPCOMMS_OK) {
        call->done = 1;
    } else if (opc__peer_inside(p) || p->stopping || p->store == NULL) {
        rc = opc__err_set(&call->detail,
                          opc__peer_inside(p) ? OPCOMMS_E_BUSY : OPCOMMS_E_CLOSED, 0, NULL);
        call->done = 1;
    }
    if (!call->done && call->number != 0 &&
        (call->number <= p->direct_first || call->number > p->direct_number)) {
        rc = opc__err_set(&call->detail, OPCOMMS_E_UNKNOWN_OUTCOME, 0,
                          "a number of an earlier opening");
        call->done = 1;
    }
    call->result = rc;
    tarpc = !call->done && address != NULL &&
            opc__node_knows_tarpc(p, call->server, &call->to);
    if (!call->done && !tarpc) {
        if (call->number == 0) call->number = ++p->direct_number;
        call->deadline_us = opc__peer_now(p) + (uint64_t)timeout_ms * 1000u;
        memcpy(call->dest, hash, 65);
        p->waiters++;
        opc__pub_native(p, call);
        p->waiters--;
        tarpc = call->tarpc;
        if (call->result == OPCOMMS_OK) p->stats.messages_out++;
        if (p->stopping) opc__cond_all(&p->changed);
    }
    if (tarpc && (p->cfg.flags & OPCOMMS_NATIVE_ONLY)) {
        call->result = opc__err_set(&call->detail, OPCOMMS_E_UNSUPPORTED, 0,
                                    "that peer speaks tarpc only");
        tarpc = 0;
    }
    opc__peer_unlock(p);
    call->done = 0;
    return !tarpc;
}

/* ---- sending ---- */

/* Prepares a call and its link; on success the caller is counted into *link. */
OPC__FN opcomms_err opc__pub_enter(opcomms_peer *p, const char *hash, const char *address,
                                   opc__call *call, opc__link **link, opcomms_error *err) {
    uint8_t want[32];
    opcomms_address to;
    opcomms_err rc = opc__pub_key(hash, want, err);
    if (rc == OPCOMMS_OK) rc = opc__pub_address(address, &to, err);
    if (rc != OPCOMMS_OK) return rc;
    if (!opc__allow_check(p->allow, want, &to)) {
        return opc__err_set(err, OPCOMMS_E_NOT_ALLOWED, 0, "our own allow list");
    }
    if (call->dest[0] == 0) memcpy(call->dest, hash, 65);
    opc__mutex_lock(&p->lock);
    call->span_id = opc__peer_span(p);
    if (opc__peer_inside(p)) {
        rc = OPCOMMS_E_BUSY;
    } else if (p->stopping) {
        rc = OPCOMMS_E_CLOSED;
    } else {
        rc = opc__link_get(p, want, &to, link);
    }
    opc__peer_unlock(p);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

OPC__FN void opc__pub_leave(opcomms_peer *p, opc__link *l, int sent) {
    opc__mutex_lock(&p->lock);
    OPCOMMS_ASSERT(l->refs > 0);
    l->refs--;
    l->used_us = opc__peer_now(p);
    if (sent) p->stats.messages_out++;
    if (p->stopping) opc__cond_all(&p->changed);
    opc__peer_unlock(p);
}

OPC__FN opcomms_err opc__pub_call(opcomms_peer *p, const char *hash, const char *address,
                                  opc__call *call, uint32_t timeout_ms, opcomms_error *err) {
    opc__link *l = NULL;
    opcomms_err rc;
    if (timeout_ms == 0) timeout_ms = p->cfg.send_timeout_ms;
    call->deadline_us = opc__peer_now(p) + (uint64_t)timeout_ms * 1000u;
    rc = opc__pub_enter(p, hash, address, call, &l, err);
    if (rc != OPCOMMS_OK) return rc;
    opc__run_call(l, call);
    OPCOMMS_ASSERT(call->done);
    rc = call->result;
    opc__pub_leave(p, l, rc == OPCOMMS_OK && call->kind == OPC__REQ_SEND);
    if (rc != OPCOMMS_OK && err != NULL) *err = call->detail;
    return rc;
}

/* An identifier of the caller that names one mailbox: its hash as bytes, or 0. */
OPC__FN int opc__pub_identifier(const opcomms_identifier *id, uint8_t hash[32]) {
    return id != NULL && id->id >= 0 && id->id <= 255 &&
           memchr(id->hash, 0, sizeof id->hash) != NULL &&
           opc__str_hash_parse(id->hash, strlen(id->hash), hash);
}

/* Fills in where a Send goes; 0: that is no mailbox. */
OPC__FN int opc__pub_dest(opc__call *call, const opcomms_identifier *to) {
    uint8_t hash[32];
    if (!opc__pub_identifier(to, hash)) return 0;
    memcpy(call->dest, to->hash, sizeof call->dest);
    call->dest_id = (uint8_t)to->id;
    return 1;
}

/* Fills in what a Send carries; checks that it fits a frame. */
OPC__FN opcomms_err opc__pub_payload(const opcomms_peer *p, opc__call *call, const void *data,
                                     size_t len, uint32_t flags, opcomms_error *err) {
    static const uint8_t nothing[1] = {0};
    int mode = (flags & OPCOMMS_MESSAGE_TEXT) ? OPC__RENDER_TEXT : OPC__RENDER_BYTES;
    if ((data == NULL && len > 0) || (flags & ~OPCOMMS_MESSAGE_TEXT) != 0) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    call->kind = OPC__REQ_SEND;
    call->data = data != NULL ? (const uint8_t *)data : nothing;
    call->len = len;
    call->mode = (uint8_t)mode;
    if (mode == OPC__RENDER_TEXT && !opc__str_utf8_valid(call->data, len)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "the text is not UTF-8");
    }
    /* Everything around the payload is less than 512 bytes (PROTOCOL: longest numbers). */
    if (len <= p->cfg.frame_bytes_max) {
        call->wire_bytes =
            opc__render_total(mode, opc__render_size(mode, call->data, len), len);
    }
    if (len > p->cfg.frame_bytes_max || call->wire_bytes > p->cfg.frame_bytes_max - 512u) {
        return opc__err_set(err, OPCOMMS_E_LIMIT, 0, "the message does not fit a frame");
    }
    return OPCOMMS_OK;
}

OPCOMMS_API opcomms_err opcomms_send_numbered(opcomms_peer *peer, const char *hash,
                                              const char *address, const void *data, size_t len,
                                              uint64_t *number, uint32_t timeout_ms,
                                              opcomms_error *err) {
    static const uint8_t nothing[1] = {0};
    opc__call call;
    opcomms_err rc;
    if (peer == NULL || number == NULL || (data == NULL && len > 0)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    memset(&call, 0, sizeof call);
    rc = opc__pub_key(hash, call.server, err);
    if (rc != OPCOMMS_OK) return rc;
    call.data = data != NULL ? (const uint8_t *)data : nothing;
    call.len = len;
    call.mode = OPC__RENDER_BYTES;
    call.kind = OPC__REQ_SEND;
    call.number = *number;
    if (timeout_ms == 0) timeout_ms = peer->cfg.send_timeout_ms;
    if (opc__pub_try_native(peer, &call, hash, address, timeout_ms)) {
        *number = call.number;
        if (call.result != OPCOMMS_OK && err != NULL) *err = call.detail;
        return call.result;
    }
    memset(&call, 0, sizeof call);
    rc = opc__pub_payload(peer, &call, data, len, 0, err);
    if (rc != OPCOMMS_OK) return rc;
    if (*number != 0) {
        return opc__err_set(err, OPCOMMS_E_UNKNOWN_OUTCOME, 0, "tarpc knows no numbers");
    }
    return opc__pub_call(peer, hash, address, &call, timeout_ms, err);
}

OPCOMMS_API opcomms_err opcomms_send(opcomms_peer *peer, const char *hash, const char *address,
                                     const void *data, size_t len, uint32_t timeout_ms,
                                     opcomms_error *err) {
    uint64_t number = 0;
    return opcomms_send_numbered(peer, hash, address, data, len, &number, timeout_ms, err);
}

OPCOMMS_API opcomms_err opcomms_ping(opcomms_peer *peer, const char *hash, const char *address,
                                     uint32_t timeout_ms, opcomms_error *err) {
    opc__call call;
    if (peer == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    memset(&call, 0, sizeof call);
    call.kind = OPC__REQ_PING;
    return opc__pub_call(peer, hash, address, &call, timeout_ms, err);
}

/* ---- receiving ---- */

OPC__FN uint32_t opc__pub_own_box(const opcomms_peer *p, uint8_t id) {
    if (id == 0) return p->own_box;
    return opc__mailbox_find(&p->mailbox, (const uint8_t *)p->hash_text, 64, id);
}

/* Waits until a message can be handed out; the lock is held before and after. The entry, or
   OPC__MAILBOX_NONE with *rc set. */
OPC__FN uint32_t opc__pub_await(opcomms_peer *p, uint8_t id, uint32_t timeout_ms,
                                opcomms_err *rc) {
    uint64_t start = opc__peer_now(p);
    for (;;) {
        uint32_t i = OPC__MAILBOX_NONE;
        uint64_t left;
        *rc = OPCOMMS_E_CLOSED;
        if (p->store == NULL || p->stopping) return i;
        i = opc__mailbox_oldest(&p->mailbox, opc__pub_own_box(p, id), p->visible, 1);
        *rc = i == OPC__MAILBOX_NONE ? OPCOMMS_E_EMPTY : OPCOMMS_OK;
        if (i != OPC__MAILBOX_NONE || !opc__pub_left(p, start, timeout_ms, &left)) return i;
        if (opc__peer_inside(p)) {
            *rc = OPCOMMS_E_BUSY;
            return i;
        }
        opc__pub_rest(p, left);
    }
}

/* With the lock, which is open meanwhile: 1 after waiting for the flush under way, for a second at
   most; 0 after making one. */
OPC__FN int opc__pub_flush(opcomms_peer *p) {
    if (p->flushing) {
        opc__cond_wait(&p->changed, &p->lock, 1000000u);
        return 1;
    }
    opc__peer_flush_inline(p);
    return 0;
}

/* Acknowledges and writes the acknowledgement, so that it survives the end of this process. When
   both buffers of the store are full, waits for the flush under way. */
OPC__FN opcomms_err opc__pub_consume(opcomms_peer *p, uint32_t i) {
    uint64_t position = 0, uid = opc__items_at(&p->items, i)->uid;
    opcomms_err rc = opc__node_consume(p, i, &position);
    while (rc == OPCOMMS_E_AGAIN) {
        if (!opc__pub_flush(p) && p->failed != OPCOMMS_OK) return OPCOMMS_E_POISONED;
        if (p->store == NULL) return OPCOMMS_E_CLOSED;
        if (opc__items_find(&p->items, uid) != i) return OPCOMMS_OK; /* consumed meanwhile */
        rc = opc__node_consume(p, i, &position);
    }
    if (rc == OPCOMMS_OK) rc = p->store->c->write(p->store);
    if (rc != OPCOMMS_OK) opc__peer_failed(p, rc);
    if (p->flushing) p->unwritten = 1;
    return rc;
}

OPCOMMS_API opcomms_err opcomms_check_receive(opcomms_peer *peer, opcomms_identifier *from,
                                              void *buf, size_t cap, size_t *len,
                                              opcomms_error *err) {
    opc__msg_meta meta;
    uint8_t dest[OPC__DEST_MAX];
    uint32_t i;
    opcomms_err rc = OPCOMMS_OK;
    if (peer == NULL || len == NULL || (buf == NULL && cap > 0)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    opc__mutex_lock(&peer->lock);
    i = opc__pub_await(peer, 0, 0, &rc);
    if (i != OPC__MAILBOX_NONE) {
        uint64_t ref = opc__items_ref(&peer->items, i);
        rc = peer->store->c->meta(peer->store, ref, &meta, dest, NULL);
        if (rc == OPCOMMS_OK && meta.bytes > cap) rc = OPCOMMS_E_BUFFER;
        if (rc == OPCOMMS_OK) {
            rc = opc__store_read_all(peer->store, opc__items_ref(&peer->items, i), 0,
                                     (uint8_t *)buf, (size_t)meta.bytes);
        }
        if (rc == OPCOMMS_OK) rc = opc__pub_consume(peer, i);
        if (rc == OPCOMMS_OK || rc == OPCOMMS_E_BUFFER) *len = (size_t)meta.bytes;
        if (rc == OPCOMMS_OK && from != NULL) {
            memset(from, 0, sizeof *from);
            opc__str_hash_write(meta.from, from->hash);
            from->id = meta.from_id;
        }
    }
    opc__peer_unlock(peer);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

OPCOMMS_API opcomms_err opcomms_wait(opcomms_peer *peer, uint32_t timeout_ms) {
    opcomms_err rc = OPCOMMS_OK;
    if (peer == NULL) return OPCOMMS_E_INVAL;
    opc__mutex_lock(&peer->lock);
    (void)opc__pub_await(peer, 0, timeout_ms, &rc);
    opc__peer_unlock(peer);
    return rc;
}

/* A handle; NULL: too many are out, or no memory, as *rc tells. */
OPC__FN opcomms_message *opc__pub_handle(opcomms_peer *p, opcomms_err *rc) {
    opcomms_message *m, *block;
    uint32_t i;
    *rc = OPCOMMS_E_LIMIT;
    if (p->messages_free == NULL && p->messages_blocks < OPC__PEER_BLOCKS) {
        *rc = OPCOMMS_E_NOMEM;
        if (p->messages == NULL) {
            p->messages = (opcomms_message **)opc__mem_array(&p->mem, OPC__PEER_BLOCKS,
                                                             sizeof *p->messages);
        }
        if (p->messages == NULL) return NULL;
        block = (opcomms_message *)opc__mem_array(&p->mem, OPC__PEER_MESSAGES, sizeof *block);
        if (block == NULL) return NULL;
        p->messages[p->messages_blocks++] = block;
        for (i = OPC__PEER_MESSAGES; i > 0; i--) {
            block[i - 1].next_free = p->messages_free;
            p->messages_free = &block[i - 1];
        }
    }
    m = p->messages_free;
    if (m == NULL) return NULL;
    p->messages_free = m->next_free;
    *rc = OPCOMMS_OK;
    return m;
}

/* The handle's entry is still the message it was made for. */
OPC__FN int opc__pub_message_lives(const opcomms_message *m) {
    const opcomms_peer *p = m->peer;
    return p->store != NULL && opc__items_at(&p->items, m->entry)->uid == m->uid;
}

/* The handle is free again, and a message that was not consumed can be handed out again; the lock
   is held. */
OPC__FN void opc__pub_drop(opcomms_message *m) {
    if (!m->used) return;
    if (opc__pub_message_lives(m)) {
        opc__items_at(&m->peer->items, m->entry)->out = 0;
        opc__cond_all(&m->peer->changed);
    }
    m->used = 0;
    m->next_free = m->peer->messages_free;
    m->peer->messages_free = m;
}

/* Hands out entry i; the lock is held. */
OPC__FN opcomms_err opc__pub_hand_out(opcomms_peer *p, uint32_t i, opcomms_message **out) {
    opc__entry *e = opc__items_at(&p->items, i);
    opc__msg_meta meta;
    uint8_t dest[OPC__DEST_MAX];
    opcomms_message *m;
    opcomms_err rc =
        p->store->c->meta(p->store, opc__items_ref(&p->items, i), &meta, dest, NULL);
    if (rc != OPCOMMS_OK) return rc;
    m = opc__pub_handle(p, &rc);
    if (m == NULL) return rc;
    m->peer = p;
    m->entry = i;
    m->used = 1;
    m->uid = e->uid;
    m->bytes = meta.bytes;
    m->flags = (meta.flags & OPC__MSG_TEXT) ? OPCOMMS_MESSAGE_TEXT : 0;
    if (meta.flags & OPC__MSG_UNCERTAIN) m->flags |= OPCOMMS_MESSAGE_UNCERTAIN;
    memcpy(m->from, meta.from, 32);
    m->from_id = meta.from_id;
    e->out = 1;
    *out = m;
    return OPCOMMS_OK;
}

OPCOMMS_API opcomms_err opcomms_receive_id(opcomms_peer *peer, uint8_t id, uint32_t timeout_ms,
                                           opcomms_message **out, opcomms_error *err) {
    opcomms_err rc = OPCOMMS_OK;
    uint32_t i;
    if (peer == NULL || out == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    opc__mutex_lock(&peer->lock);
    i = opc__pub_await(peer, id, timeout_ms, &rc);
    if (i != OPC__MAILBOX_NONE) rc = opc__pub_hand_out(peer, i, out);
    opc__peer_unlock(peer);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

OPCOMMS_API opcomms_err opcomms_receive(opcomms_peer *peer, uint32_t timeout_ms,
                                        opcomms_message **out, opcomms_error *err) {
    return opcomms_receive_id(peer, 0, timeout_ms, out, err);
}

OPCOMMS_API opcomms_err opcomms_ack(opcomms_message *message, opcomms_error *err) {
    opcomms_peer *p;
    opcomms_err rc;
    if (message == NULL || !message->used) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    p = message->peer;
    opc__mutex_lock(&p->lock);
    if (p->store == NULL) {
        rc = OPCOMMS_E_CLOSED;
    } else if (!opc__pub_message_lives(message)) {
        rc = OPCOMMS_E_NOT_FOUND;
    } else {
        rc = opc__pub_consume(p, message->entry);
    }
    opc__pub_drop(message);
    opc__peer_unlock(p);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

OPCOMMS_API void opcomms_release(opcomms_message *message) {
    opcomms_peer *p;
    if (message == NULL || !message->used) return;
    p = message->peer;
    opc__mutex_lock(&p->lock);
    opc__pub_drop(message);
    opc__peer_unlock(p);
}

OPCOMMS_API size_t opcomms_message_size(const opcomms_message *message) {
    return message != NULL ? (size_t)message->bytes : 0;
}

OPCOMMS_API uint64_t opcomms_message_number(const opcomms_message *message) {
    return message != NULL ? message->uid : 0;
}

OPCOMMS_API uint32_t opcomms_message_flags(const opcomms_message *message) {
    return message != NULL ? message->flags : 0;
}

OPCOMMS_API void opcomms_message_from(const opcomms_message *message, opcomms_identifier *from) {
    if (message == NULL || from == NULL) return;
    memset(from, 0, sizeof *from);
    opc__str_hash_write(message->from, from->hash);
    from->id = message->from_id;
}

OPCOMMS_API opcomms_err opcomms_message_read(opcomms_message *message, uint64_t offset, void *buf,
                                             size_t len, size_t *got) {
    opcomms_peer *p;
    opcomms_err rc = OPCOMMS_OK;
    if (message == NULL || !message->used || got == NULL || (buf == NULL && len > 0)) {
        return OPCOMMS_E_INVAL;
    }
    p = message->peer;
    opc__mutex_lock(&p->lock);
    if (p->store == NULL) {
        rc = OPCOMMS_E_CLOSED;
    } else if (offset >= message->bytes || len == 0) {
        *got = 0;
    } else if (!opc__pub_message_lives(message)) {
        rc = OPCOMMS_E_NOT_FOUND;
    } else {
        if (len > message->bytes - offset) len = (size_t)(message->bytes - offset);
        rc = p->store->c->read(p->store, opc__items_ref(&p->items, message->entry), offset,
                               (uint8_t *)buf, len, got);
    }
    opc__peer_unlock(p);
    return rc;
}

/* ---- the broker channel ---- */

struct opcomms_client {
    opcomms_peer *peer;
    char hash[65];
    char address[64];
};

OPCOMMS_API opcomms_err opcomms_client_open(opcomms_peer *peer, const char *hash,
                                            const char *address, opcomms_client **out,
                                            opcomms_error *err) {
    uint8_t want[32];
    opcomms_address to;
    opcomms_client *c;
    opcomms_err rc;
    if (peer == NULL || out == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    rc = opc__pub_key(hash, want, err);
    if (rc == OPCOMMS_OK) rc = opc__pub_address(address, &to, err);
    if (rc != OPCOMMS_OK) return rc;
    if (strlen(address) >= sizeof c->address) {
        return opc__err_set(err, OPCOMMS_E_ADDRESS, 0, address);
    }
    opc__mutex_lock(&peer->lock);
    c = (opcomms_client *)opc__mem_alloc(&peer->mem, sizeof *c);
    opc__peer_unlock(peer);
    if (c == NULL) return opc__err_set(err, OPCOMMS_E_NOMEM, 0, NULL);
    c->peer = peer;
    memcpy(c->hash, hash, 65);
    memcpy(c->address, address, strlen(address) + 1);
    *out = c;
    return OPCOMMS_OK;
}

OPCOMMS_API void opcomms_client_close(opcomms_client *client) {
    opcomms_peer *p;
    if (client == NULL) return;
    p = client->peer;
    opc__mutex_lock(&p->lock);
    opc__mem_free(&p->mem, client, sizeof *client);
    opc__peer_unlock(p);
}

OPCOMMS_API opcomms_err opcomms_client_send(opcomms_client *client, uint8_t from_id,
                                            const opcomms_identifier *to, const void *data,
                                            size_t len, uint32_t flags, uint32_t timeout_ms,
                                            opcomms_error *err) {
    opc__call call;
    opcomms_err rc;
    memset(&call, 0, sizeof call);
    if (client == NULL || !opc__pub_dest(&call, to)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "the destination");
    }
    rc = opc__pub_payload(client->peer, &call, data, len, flags, err);
    if (rc != OPCOMMS_OK) return rc;
    call.from_id = from_id;
    return opc__pub_call(client->peer, client->hash, client->address, &call, timeout_ms, err);
}

OPCOMMS_API opcomms_err opcomms_client_get(opcomms_client *client, uint8_t id, opcomms_mail *mail,
                                           void *buf, size_t cap, uint32_t timeout_ms,
                                           opcomms_error *err) {
    opc__call call;
    opcomms_err rc;
    if (client == NULL || mail == NULL || (buf == NULL && cap > 0)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    memset(&call, 0, sizeof call);
    call.kind = OPC__REQ_GET;
    call.dest_id = id;
    opc__fetch_init(&call.fetch, (uint8_t *)buf, cap);
    rc = opc__pub_call(client->peer, client->hash, client->address, &call, timeout_ms, err);
    if (rc != OPCOMMS_OK) return rc;
    memset(mail, 0, sizeof *mail);
    if (!call.found) return opc__err_set(err, OPCOMMS_E_EMPTY, 0, NULL);
    mail->uid = call.uid;
    mail->bytes = call.fetch.bytes;
    mail->flags = call.fetch.is_text ? OPCOMMS_MESSAGE_TEXT : 0;
    memcpy(mail->from.hash, call.from, sizeof mail->from.hash);
    mail->from.id = call.got_from_id;
    if (mail->bytes > cap) return opc__err_set(err, OPCOMMS_E_BUFFER, 0, NULL);
    return OPCOMMS_OK;
}

OPCOMMS_API opcomms_err opcomms_client_ack(opcomms_client *client, uint8_t id, uint64_t uid,
                                           uint32_t timeout_ms, opcomms_error *err) {
    opc__call call;
    if (client == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    memset(&call, 0, sizeof call);
    call.kind = OPC__REQ_ACK;
    call.dest_id = id;
    call.uid = uid;
    return opc__pub_call(client->peer, client->hash, client->address, &call, timeout_ms, err);
}

OPCOMMS_API opcomms_err opcomms_client_recv(opcomms_client *client, uint8_t id, opcomms_mail *mail,
                                            void *buf, size_t cap, uint32_t timeout_ms,
                                            opcomms_error *err) {
    opcomms_err rc = opcomms_client_get(client, id, mail, buf, cap, timeout_ms, err);
    if (rc != OPCOMMS_OK) return rc;
    return opcomms_client_ack(client, id, mail->uid, timeout_ms, err);
}

OPCOMMS_API opcomms_err opcomms_client_ping(opcomms_client *client, uint32_t timeout_ms,
                                            opcomms_error *err) {
    if (client == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    return opcomms_ping(client->peer, client->hash, client->address, timeout_ms, err);
}

/* ---- components of this process ---- */

/* With the lock, which is open meanwhile: until the store takes another piece. */
OPC__FN opcomms_err opc__pub_room(opcomms_peer *p) {
    while (p->store != NULL && p->store->c->room(p->store) < OPC__CONN_ROOM) {
        if (p->failed != OPCOMMS_OK) return OPCOMMS_E_POISONED;
        if (p->cfg.durability != OPCOMMS_DURABLE_ALWAYS && !p->flushing) {
            opc__peer_failed(p, p->store->c->write(p->store)); /* which makes room without a sync */
            if (p->store->c->room(p->store) >= OPC__CONN_ROOM) break;
        }
        (void)opc__pub_flush(p); /* the loop looks again */
    }
    if (p->store == NULL || p->stopping) return OPCOMMS_E_CLOSED;
    return p->failed != OPCOMMS_OK ? OPCOMMS_E_POISONED : OPCOMMS_OK;
}

/* With the lock, which may be open meanwhile: until `position` is as durable as configured. */
OPC__FN opcomms_err opc__pub_settle(opcomms_peer *p, uint64_t position) {
    for (;;) {
        if (p->visible >= position) return OPCOMMS_OK;
        if (p->failed != OPCOMMS_OK) return OPCOMMS_E_POISONED;
        if (p->store == NULL) return OPCOMMS_E_UNKNOWN_OUTCOME;
        if (p->flushing) {
            opc__cond_wait(&p->changed, &p->lock, 1000000u);
        } else if (p->cfg.durability == OPCOMMS_DURABLE_ALWAYS &&
                   !(p->cfg.flags & OPCOMMS_MEMORY_STORE)) {
            opc__peer_flush_inline(p);
        } else {
            opc__peer_flush(p, opc__peer_now(p));
        }
    }
}

/* Stores the payload of a call as a message of `from`; the lock is held before and after. */
OPC__FN opcomms_err opc__pub_store(opcomms_peer *p, const opc__call *call, const uint8_t from[32],
                                   uint64_t *position) {
    opc__msg_meta meta;
    uint32_t put = 0, box = 0;
    uint64_t uid = 0, ref = 0;
    size_t at = 0;
    opcomms_err rc = p->store->c->begin(p->store, &put);
    if (rc != OPCOMMS_OK) return rc;
    while (rc == OPCOMMS_OK && at < call->len) {
        size_t some = call->len - at < 1024u ? call->len - at : 1024u;
        rc = opc__pub_room(p);
        if (rc == OPCOMMS_OK) rc = p->store->c->data(p->store, put, call->data + at, some);
        if (rc == OPCOMMS_OK) at += some;
        if (rc == OPCOMMS_E_AGAIN) rc = OPCOMMS_OK;
    }
    memset(&meta, 0, sizeof meta);
    memcpy(meta.from, from, 32);
    meta.from_id = call->from_id;
    meta.dest_id = call->dest_id;
    meta.flags = call->mode == OPC__RENDER_TEXT ? OPC__MSG_TEXT : 0;
    meta.dest = (const uint8_t *)call->dest;
    meta.dest_len = (uint32_t)strlen(call->dest);
    meta.bytes = call->len;
    meta.wire_bytes = call->wire_bytes;
    meta.time_s = p->plat->wall_s(p->plat->user);
    while (rc == OPCOMMS_OK) {
        rc = opc__pub_room(p);
        if (rc == OPCOMMS_OK) {
            rc = opc__mailbox_open(&p->mailbox, meta.dest, meta.dest_len, meta.dest_id, &box);
        }
        if (rc == OPCOMMS_OK) rc = opc__mailbox_reserve(&p->mailbox, box, meta.from);
        if (rc != OPCOMMS_OK) break;
        rc = p->store->c->commit(p->store, put, &meta, &uid, &ref, position);
        if (rc == OPCOMMS_OK) {
            opc__mailbox_add(&p->mailbox, box, meta.from, uid, ref, *position, meta.bytes);
            p->unflushed++;
            p->stats.messages_in++;
            return OPCOMMS_OK;
        }
        if (rc == OPCOMMS_E_AGAIN) rc = OPCOMMS_OK;
    }
    if (p->store != NULL) p->store->c->abort(p->store, put);
    return rc;
}

/* Why a component of this process cannot store anything now; the lock is held. */
OPC__FN opcomms_err opc__pub_local(opcomms_peer *p) {
    if (opc__peer_inside(p)) return OPCOMMS_E_BUSY;
    if (p->store == NULL || p->stopping) return OPCOMMS_E_CLOSED;
    return p->failed != OPCOMMS_OK ? OPCOMMS_E_POISONED : OPCOMMS_OK;
}

/* Stores and waits until it is as durable as configured. */
OPC__FN opcomms_err opc__pub_keep(opcomms_peer *p, const opc__call *call,
                                  const uint8_t from[32]) {
    uint64_t position = 0;
    opcomms_err rc = opc__pub_store(p, call, from, &position);
    if (rc == OPCOMMS_OK) rc = opc__pub_settle(p, position);
    if (rc == OPCOMMS_E_IO) opc__peer_failed(p, rc);
    opc__cond_all(&p->changed);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_local_send(opcomms_peer *peer, uint8_t from_id,
                                           const opcomms_identifier *to, const void *data,
                                           size_t len, uint32_t flags, opcomms_error *err) {
    opc__call call;
    opcomms_err rc;
    memset(&call, 0, sizeof call);
    if (peer == NULL || !opc__pub_dest(&call, to)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "the destination");
    }
    rc = opc__pub_payload(peer, &call, data, len, flags, err);
    if (rc != OPCOMMS_OK) return rc;
    call.from_id = from_id;
    opc__mutex_lock(&peer->lock);
    rc = opc__pub_local(peer);
    if (rc == OPCOMMS_OK &&
        ((!opc__mailbox_is_own(&peer->mailbox, (const uint8_t *)call.dest, 64) &&
          peer->cfg.mailboxes_max == 0) ||
         !opc__route_can(peer->routes, (const uint8_t *)peer->hash_text, 64, from_id,
                         (const uint8_t *)call.dest, 64, call.dest_id))) {
        peer->stats.routes_refused++;
        rc = OPCOMMS_E_ROUTE;
    }
    if (rc == OPCOMMS_OK) rc = opc__pub_keep(peer, &call, peer->hash);
    opc__peer_unlock(peer);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

OPCOMMS_API opcomms_err opcomms_local_import(opcomms_peer *peer, uint8_t id,
                                             const opcomms_mail *mail, const void *data,
                                             opcomms_error *err) {
    static const uint8_t nothing[1] = {0};
    opc__call call;
    uint8_t from[32];
    opcomms_err rc;
    if (peer == NULL || mail == NULL || (data == NULL && mail->bytes > 0) ||
        (mail->flags & ~OPCOMMS_MESSAGE_TEXT) != 0) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    if (!opc__pub_identifier(&mail->from, from)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "the sender");
    }
    /* No frame to fit into: it came in one, whose surroundings may have been shorter than ours. */
    if (mail->bytes > peer->cfg.frame_bytes_max) return opc__err_set(err, OPCOMMS_E_LIMIT, 0, NULL);
    memset(&call, 0, sizeof call);
    call.data = data != NULL ? (const uint8_t *)data : nothing;
    call.len = (size_t)mail->bytes;
    call.mode = (mail->flags & OPCOMMS_MESSAGE_TEXT) ? OPC__RENDER_TEXT : OPC__RENDER_BYTES;
    if (call.mode == OPC__RENDER_TEXT && !opc__str_utf8_valid(call.data, call.len)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "the text is not UTF-8");
    }
    call.wire_bytes =
        opc__render_total(call.mode, opc__render_size(call.mode, call.data, call.len), call.len);
    memcpy(call.dest, peer->hash_text, 65);
    call.dest_id = id;
    call.from_id = (uint8_t)mail->from.id;
    opc__mutex_lock(&peer->lock);
    rc = opc__pub_local(peer);
    if (rc == OPCOMMS_OK) rc = opc__pub_keep(peer, &call, from);
    opc__peer_unlock(peer);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

OPCOMMS_API opcomms_err opcomms_local_get(opcomms_peer *peer, uint8_t id, opcomms_mail *mail,
                                          void *buf, size_t cap, opcomms_error *err) {
    opc__msg_meta meta;
    uint8_t dest[OPC__DEST_MAX];
    uint32_t i;
    opcomms_err rc = OPCOMMS_E_CLOSED;
    if (peer == NULL || mail == NULL || (buf == NULL && cap > 0)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    memset(mail, 0, sizeof *mail);
    opc__mutex_lock(&peer->lock);
    if (peer->store != NULL && !peer->stopping) {
        i = opc__mailbox_oldest(&peer->mailbox, opc__pub_own_box(peer, id), peer->visible, 0);
        rc = OPCOMMS_E_EMPTY;
        if (i != OPC__MAILBOX_NONE) {
            rc = peer->store->c->meta(peer->store, opc__items_ref(&peer->items, i), &meta, dest,
                                      NULL);
        }
        if (rc == OPCOMMS_OK) {
            mail->uid = meta.uid;
            mail->bytes = meta.bytes;
            mail->flags = (meta.flags & OPC__MSG_TEXT) ? OPCOMMS_MESSAGE_TEXT : 0;
            opc__str_hash_write(meta.from, mail->from.hash);
            mail->from.id = meta.from_id;
            rc = meta.bytes > cap
                     ? OPCOMMS_E_BUFFER
                     : opc__store_read_all(peer->store, opc__items_ref(&peer->items, i), 0,
                                           (uint8_t *)buf, (size_t)meta.bytes);
        }
    }
    opc__peer_unlock(peer);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

OPCOMMS_API opcomms_err opcomms_local_ack(opcomms_peer *peer, uint8_t id, uint64_t uid,
                                          opcomms_error *err) {
    uint32_t i;
    opcomms_err rc = OPCOMMS_E_CLOSED;
    if (peer == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    opc__mutex_lock(&peer->lock);
    if (peer->store != NULL && !peer->stopping) {
        i = opc__mailbox_by_uid(&peer->mailbox, opc__pub_own_box(peer, id), peer->visible, uid);
        rc = i == OPC__MAILBOX_NONE ? OPCOMMS_E_NOT_FOUND : opc__pub_consume(peer, i);
    }
    opc__peer_unlock(peer);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

OPCOMMS_API opcomms_err opcomms_local_recv(opcomms_peer *peer, uint8_t id, opcomms_mail *mail,
                                           void *buf, size_t cap, opcomms_error *err) {
    opcomms_err rc = opcomms_local_get(peer, id, mail, buf, cap, err);
    if (rc != OPCOMMS_OK) return rc;
    return opcomms_local_ack(peer, id, mail->uid, err);
}

/* ---- the outbox ---- */

/* What an enqueue asks for, checked. */
typedef struct opc__order {
    opc__msg_meta meta;
    char dest[65];
    const uint8_t *data;
    uint32_t put;
    uint32_t index;
    int open; /* the put is */
} opc__order;

/* With the lock: where it goes, and whether the allow list lets it. */
OPC__FN opcomms_err opc__pub_aim(opcomms_peer *p, const opcomms_identifier *to,
                                 const char *address, opc__msg_meta *m, opcomms_error *err) {
    opc__peer_aim *a = &p->aims[(unsigned char)to->hash[0] % OPC__PEER_AIMS];
    uint64_t list = opc__allow_generation(p->allow) + 1u;
    size_t n = address != NULL ? strlen(address) : 0;
    if (to->id < 0 || to->id > 255) return opc__err_set(err, OPCOMMS_E_INVAL, 0, "the destination");
    if (a->list != list || memcmp(a->hash, to->hash, 65) != 0 || a->named != (address != NULL) ||
        (address != NULL && strcmp(a->address, address) != 0)) {
        a->list = 0;
        if (!opc__pub_identifier(to, a->server)) {
            return opc__err_set(err, OPCOMMS_E_INVAL, 0, "the destination");
        }
        memset(&a->to, 0, sizeof a->to);
        if (address != NULL && (n >= sizeof a->address ||
                                opc__id_address_parse(address, n, &a->to) != OPCOMMS_OK ||
                                a->to.port == 0)) {
            return opc__err_set(err, OPCOMMS_E_ADDRESS, 0, address);
        }
        if (!opc__allow_check(p->allow, a->server, address != NULL ? &a->to : NULL)) {
            return opc__err_set(err, OPCOMMS_E_NOT_ALLOWED, 0, "our own allow list");
        }
        memcpy(a->hash, to->hash, 65);
        if (n > 0) memcpy(a->address, address, n + 1u);
        a->named = address != NULL;
        a->list = list;
    }
    memcpy(m->server, a->server, 32);
    m->address = a->to;
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__pub_order(opcomms_peer *p, const opcomms_outgoing *o, opc__order *out,
                                   opcomms_error *err) {
    static const uint8_t nothing[1] = {0};
    opcomms_enqueue_options opt;
    opc__msg_meta *m = &out->meta;
    memset(out, 0, sizeof *out);
    memset(&opt, 0, sizeof opt);
    if (o->options != NULL) {
        if (o->options->size < 16u || o->options->size > 4096u) {
            return opc__err_set(err, OPCOMMS_E_INVAL, 0, "options.size");
        }
        memcpy(&opt, o->options, o->options->size < sizeof opt ? o->options->size : sizeof opt);
    }
    if ((o->data == NULL && o->len > 0) || (o->context == NULL && o->context_len > 0) ||
        o->context_len > OPC__CONTEXT_MAX || opt.level > OPCOMMS_LEVEL_CONSUMED ||
        (opt.flags & ~(OPCOMMS_ENQUEUE_TEXT | OPCOMMS_ENQUEUE_NATIVE_ONLY)) != 0) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    if (o->len > p->cfg.message_bytes_max) {
        return opc__err_set(err, OPCOMMS_E_LIMIT, 0, "cfg.message_bytes_max");
    }
    out->data = o->data != NULL ? (const uint8_t *)o->data : nothing;
    if ((opt.flags & OPCOMMS_ENQUEUE_TEXT) && !opc__str_utf8_valid(out->data, o->len)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, "the text is not UTF-8");
    }
    memcpy(out->dest, o->to.hash, 65); /* checked by opc__pub_aim, as the rest of where it goes */
    m->kind = OPC__KIND_OUT;
    m->from_id = opt.from_id;
    m->dest_id = (uint8_t)o->to.id;
    m->flags = (opt.flags & OPCOMMS_ENQUEUE_TEXT) ? OPC__MSG_TEXT : 0;
    m->dest = (const uint8_t *)out->dest;
    m->dest_len = 64;
    m->bytes = o->len;
    m->wire_bytes = UINT64_MAX;
    m->level = opt.level != 0 ? opt.level : (uint8_t)OPCOMMS_LEVEL_DURABLE;
    m->options = (opt.flags & OPCOMMS_ENQUEUE_NATIVE_ONLY) ? 1u : 0;
    m->attempts_max = opt.attempts_max != 0 ? opt.attempts_max : p->cfg.attempts_max;
    m->context = (const uint8_t *)o->context;
    m->context_len = (uint32_t)o->context_len;
    m->expires_s = opt.expiry_s; /* from now on, see opc__pub_place */
    return OPCOMMS_OK;
}

/* With the lock, which may be open meanwhile: a place in the outbox, and the payload in the store.
   What goes wrong later is undone by opc__pub_unplace. */
OPC__FN opcomms_err opc__pub_place(opcomms_peer *p, opc__order *o) {
    opc__msg_meta *m = &o->meta;
    uint64_t at = 0;
    opcomms_err rc;
    m->time_s = p->plat->wall_s(p->plat->user);
    if (m->expires_s != 0) m->expires_s += m->time_s;
    p->store->c->epoch(p->store, &m->epoch);
    rc = p->store->c->begin(p->store, &o->put);
    if (rc != OPCOMMS_OK) return rc;
    o->open = 1;
    while (at < m->bytes) {
        uint64_t some = m->bytes - at < OPC__FRAG_BYTES ? m->bytes - at : OPC__FRAG_BYTES;
        rc = opc__pub_room(p);
        if (rc == OPCOMMS_OK) {
            rc = p->store->c->data(p->store, o->put, o->data + at, (size_t)some);
        }
        if (rc == OPCOMMS_OK) at += some;
        if (rc != OPCOMMS_OK && rc != OPCOMMS_E_AGAIN) return rc;
    }
    return opc__pub_room(p);
}

OPC__FN void opc__pub_unplace(opcomms_peer *p, opc__order *o) {
    if (o->open && p->store != NULL) p->store->c->abort(p->store, o->put);
    o->open = 0;
}

/* Room in the outbox for it. The lock stays closed from here to opc__pub_queue. */
OPC__FN opcomms_err opc__pub_reserve(opcomms_peer *p, opc__order *o) {
    const opc__msg_meta *m = &o->meta;
    opcomms_err rc = opc__outbox_open(&p->outbox, m->server, m->from_id, m->dest, m->dest_len,
                                      m->dest_id, &o->index);
    if (rc == OPCOMMS_E_LIMIT) return OPCOMMS_E_FULL; /* destinations */
    if (rc == OPCOMMS_OK) rc = opc__outbox_reserve(&p->outbox, o->index, m);
    return rc;
}

/* The same for several, beside each other. */
OPC__FN opcomms_err opc__pub_reserve_all(opcomms_peer *p, opc__order *orders, size_t count) {
    opc__outbox *o = &p->outbox;
    uint64_t bytes = o->bytes;
    size_t i, k, held = 0;
    opcomms_err rc = OPCOMMS_OK;
    for (i = 0; rc == OPCOMMS_OK && i < count; i++) {
        uint32_t same = 0;
        rc = opc__pub_reserve(p, &orders[i]);
        if (rc != OPCOMMS_OK) break;
        o->dests[orders[i].index].held++; /* an empty one is not for the next order to take over */
        held++;
        bytes += orders[i].meta.bytes;
        for (k = 0; k < i; k++) same += orders[k].index == orders[i].index;
        if (bytes > o->limits.bytes_max ||
            same >= o->limits.depth_max - o->dests[orders[i].index].count ||
            i >= o->limits.messages_max - o->queued - o->dead) {
            rc = OPCOMMS_E_FULL;
        }
    }
    if (rc == OPCOMMS_OK && (opc__items_reserve(&p->items, (uint32_t)count) != OPCOMMS_OK ||
                             !opc__outbox_term_reserve(o, (uint32_t)count))) {
        rc = OPCOMMS_E_NOMEM;
    }
    while (held > 0) o->dests[orders[--held].index].held--;
    return rc;
}

/* Becomes a queued message. OPCOMMS_E_AGAIN: the store has no room now. */
OPC__FN opcomms_err opc__pub_queue(opcomms_peer *p, opc__order *o, uint64_t *position) {
    uint64_t uid = 0, ref = 0;
    uint32_t i;
    opcomms_err rc = p->store->c->commit(p->store, o->put, &o->meta, &uid, &ref, position);
    if (rc != OPCOMMS_OK) return rc;
    o->open = 0;
    o->meta.uid = uid;
    i = opc__outbox_add(&p->outbox, o->index, &o->meta, uid, ref, *position);
    opc__pub_queued_as(p, i, &o->meta);
    p->unflushed++;
    return OPCOMMS_OK;
}

/* As durable as a caller may expect when the call returns. */
OPC__FN opcomms_err opc__pub_wait_stored(opcomms_peer *p, uint64_t position) {
    if (p->cfg.flags & OPCOMMS_MEMORY_STORE) { /* visible at once */
        opc__peer_visible(p);
        return OPCOMMS_OK;
    }
    return p->cfg.durability == OPCOMMS_DURABLE_ALWAYS ? opc__pub_settle(p, position) : OPCOMMS_OK;
}

OPC__FN opcomms_err opc__pub_enqueue(opcomms_peer *p, opc__order *o) {
    uint64_t position = 0;
    opcomms_err rc = opc__pub_local(p);
    if (rc == OPCOMMS_OK) rc = opc__pub_place(p, o);
    while (rc == OPCOMMS_OK) {
        rc = opc__pub_room(p);
        if (rc == OPCOMMS_OK) rc = opc__pub_reserve(p, o);
        if (rc != OPCOMMS_OK) break;
        rc = opc__pub_queue(p, o, &position);
        if (rc == OPCOMMS_OK) break;
        if (rc == OPCOMMS_E_AGAIN) rc = OPCOMMS_OK;
    }
    opc__pub_unplace(p, o);
    if (rc != OPCOMMS_OK) return rc;
    rc = opc__pub_wait_stored(p, position);
    opc__peer_kick(p);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_enqueue(opcomms_peer *peer, const opcomms_identifier *to,
                                        const char *address, const void *context,
                                        size_t context_len, const void *data, size_t len,
                                        const opcomms_enqueue_options *options, uint64_t *number,
                                        opcomms_error *err) {
    opcomms_outgoing out;
    opc__order o;
    opcomms_err rc;
    if (peer == NULL || to == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    memset(&out, 0, sizeof out);
    out.to = *to;
    out.address = address;
    out.context = context;
    out.context_len = context_len;
    out.data = data;
    out.len = len;
    out.options = options;
    rc = opc__pub_order(peer, &out, &o, err);
    if (rc != OPCOMMS_OK) return rc;
    opc__mutex_lock(&peer->lock);
    rc = opc__pub_aim(peer, to, address, &o.meta, err);
    if (rc != OPCOMMS_OK) {
        opc__peer_unlock(peer);
        return rc;
    }
    rc = opc__pub_enqueue(peer, &o);
    if (rc == OPCOMMS_OK && number != NULL) *number = o.meta.uid;
    if (rc == OPCOMMS_E_FULL) peer->stats.queue_full++;
    opc__peer_unlock(peer);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

/* With the lock: what is known of entry i. */
OPC__FN opcomms_err opc__pub_describe(opcomms_peer *p, uint32_t i, opcomms_queued *out) {
    const opc__entry *e = opc__items_at(&p->items, i);
    uint8_t dest[OPC__DEST_MAX];
    static const uint8_t states[] = {OPCOMMS_STATE_QUEUED,  OPCOMMS_STATE_SENT,
                                     OPCOMMS_STATE_RECEIVED, OPCOMMS_STATE_DURABLE,
                                     OPCOMMS_STATE_DURABLE, OPCOMMS_STATE_DEAD};
    opc__msg_meta m;
    opcomms_err rc;
    memset(out, 0, sizeof *out);
    rc = p->store->c->meta(p->store, opc__items_ref(&p->items, i), &m, dest, out->context);
    if (rc != OPCOMMS_OK) return rc;
    out->number = e->uid;
    out->bytes = m.bytes;
    out->state = states[opc__outbox_state(&p->outbox, i)];
    out->attempts = opc__outbox_attempts(e);
    out->uncertain = (e->tried & OPC__TRIED_TARPC) != 0;
    opc__str_hash_write(m.server, out->to.hash);
    out->to.id = m.dest_id;
    out->from_id = m.from_id;
    out->level = m.level;
    out->context_len = m.context_len;
    out->time_s = m.time_s;
    out->expires_s = m.expires_s;
    if (e->kind == OPC__KIND_DEAD) {
        out->code = (opcomms_err)opc__outbox_dead_code(e);
        out->dead_s = opc__outbox_dead_s(e);
    } else if (out->attempts > 0) {
        out->code = (opcomms_err)p->outbox.dests[e->box].code;
    }
    return OPCOMMS_OK;
}

/* Entry of a queued message or dead letter; OPC__ITEMS_NONE: there is none. */
OPC__FN uint32_t opc__pub_entry(const opcomms_peer *p, uint64_t number) {
    uint32_t i = p->store != NULL ? opc__items_find(&p->items, number) : OPC__ITEMS_NONE;
    if (i != OPC__ITEMS_NONE && opc__items_at(&p->items, i)->kind == OPC__KIND_IN) {
        return OPC__ITEMS_NONE;
    }
    return i;
}

OPCOMMS_API opcomms_err opcomms_queued_get(opcomms_peer *peer, uint64_t number,
                                           opcomms_queued *out) {
    opcomms_err rc = OPCOMMS_E_NOT_FOUND;
    uint32_t i;
    if (peer == NULL || out == NULL) return OPCOMMS_E_INVAL;
    opc__mutex_lock(&peer->lock);
    i = opc__pub_entry(peer, number);
    if (peer->store == NULL) rc = OPCOMMS_E_CLOSED;
    if (i != OPC__ITEMS_NONE) rc = opc__pub_describe(peer, i, out);
    opc__peer_unlock(peer);
    return rc;
}

OPCOMMS_API uint64_t opcomms_queued_count(opcomms_peer *peer, const char *hash) {
    uint8_t want[32];
    uint64_t n = 0;
    if (peer == NULL) return 0;
    if (hash != NULL && !opc__str_hash_parse(hash, strlen(hash), want)) return 0;
    opc__mutex_lock(&peer->lock);
    n = hash == NULL ? peer->outbox.queued : opc__outbox_server_count(&peer->outbox, want);
    opc__peer_unlock(peer);
    return n;
}

OPCOMMS_API opcomms_err opcomms_queued_next(opcomms_peer *peer, uint64_t after,
                                            opcomms_queued *out) {
    opcomms_err rc = OPCOMMS_E_NOT_FOUND;
    if (peer == NULL || out == NULL) return OPCOMMS_E_INVAL;
    opc__mutex_lock(&peer->lock);
    if (peer->store == NULL) {
        rc = OPCOMMS_E_CLOSED;
    } else {
        uint32_t i = opc__outbox_above(&peer->outbox, after);
        if (i != OPC__ITEMS_NONE) rc = opc__pub_describe(peer, i, out);
    }
    opc__peer_unlock(peer);
    return rc;
}

OPCOMMS_API uint64_t opcomms_dead_count(opcomms_peer *peer) {
    uint64_t n;
    if (peer == NULL) return 0;
    opc__mutex_lock(&peer->lock);
    n = peer->outbox.dead;
    opc__peer_unlock(peer);
    return n;
}

OPCOMMS_API opcomms_err opcomms_dead_next(opcomms_peer *peer, uint64_t after,
                                          opcomms_queued *out) {
    opcomms_err rc = OPCOMMS_E_NOT_FOUND;
    uint32_t i, best = OPC__ITEMS_NONE;
    if (peer == NULL || out == NULL) return OPCOMMS_E_INVAL;
    opc__mutex_lock(&peer->lock);
    if (peer->store == NULL) rc = OPCOMMS_E_CLOSED;
    for (i = peer->outbox.dead_first; peer->store != NULL && i != OPC__ITEMS_NONE;
         i = opc__items_at(&peer->items, i)->next) {
        uint64_t uid = opc__items_at(&peer->items, i)->uid;
        if (uid > after && (best == OPC__ITEMS_NONE ||
                            uid < opc__items_at(&peer->items, best)->uid)) {
            best = i;
        }
    }
    if (best != OPC__ITEMS_NONE) rc = opc__pub_describe(peer, best, out);
    opc__peer_unlock(peer);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_queued_read(opcomms_peer *peer, uint64_t number, uint64_t offset,
                                            void *buf, size_t len, size_t *got) {
    opcomms_err rc = OPCOMMS_E_NOT_FOUND;
    uint32_t i;
    if (peer == NULL || got == NULL || (buf == NULL && len > 0)) return OPCOMMS_E_INVAL;
    *got = 0;
    opc__mutex_lock(&peer->lock);
    i = opc__pub_entry(peer, number);
    if (i != OPC__ITEMS_NONE) {
        uint64_t bytes = opc__items_at(&peer->items, i)->bytes;
        rc = OPCOMMS_OK;
        if (offset < bytes && len > 0) {
            if (len > bytes - offset) len = (size_t)(bytes - offset);
            rc = peer->store->c->read(peer->store, opc__items_ref(&peer->items, i), offset,
                                      (uint8_t *)buf, len, got);
        }
    }
    opc__peer_unlock(peer);
    return rc;
}

/* Ends entry `number` in the store; the lock may be open meanwhile. *index: what it was. */
OPC__FN opcomms_err opc__pub_over(opcomms_peer *p, uint64_t number, int kind, int how,
                                  uint64_t *position, uint32_t *index) {
    for (;;) {
        opcomms_err rc = opc__pub_room(p);
        uint32_t i = rc == OPCOMMS_OK ? opc__pub_entry(p, number) : OPC__ITEMS_NONE;
        if (rc != OPCOMMS_OK) return rc;
        if (i == OPC__ITEMS_NONE || (int)opc__items_at(&p->items, i)->kind != kind) {
            return OPCOMMS_E_NOT_FOUND;
        }
        rc = p->store->c->done(p->store, opc__items_ref(&p->items, i), number, how, position);
        *index = i;
        if (rc != OPCOMMS_E_AGAIN) return rc;
    }
}

OPCOMMS_API opcomms_err opcomms_cancel(opcomms_peer *peer, uint64_t number, opcomms_error *err) {
    uint64_t position = 0;
    uint32_t i = 0;
    opcomms_err rc;
    if (peer == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    opc__mutex_lock(&peer->lock);
    rc = opc__pub_local(peer);
    if (rc == OPCOMMS_OK) {
        rc = opc__pub_over(peer, number, OPC__KIND_OUT, OPC__DONE_CANCELLED, &position, &i);
    }
    if (rc == OPCOMMS_OK) {
        int tried = opc__items_at(&peer->items, i)->tried != 0;
        opc__peer_event(peer, number, OPCOMMS_STATE_CANCELLED, OPCOMMS_OK,
                        peer->outbox.dests[opc__items_at(&peer->items, i)->box].server);
        opc__outbox_remove(&peer->outbox, i);
        peer->unflushed++;
        rc = opc__pub_wait_stored(peer, position);
        if (rc == OPCOMMS_OK && tried) rc = OPCOMMS_E_UNKNOWN_OUTCOME;
        opc__peer_kick(peer);
    }
    opc__peer_unlock(peer);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

OPCOMMS_API opcomms_err opcomms_dead_drop(opcomms_peer *peer, uint64_t number,
                                          opcomms_error *err) {
    uint64_t position = 0;
    uint32_t i = 0;
    opcomms_err rc;
    if (peer == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    opc__mutex_lock(&peer->lock);
    rc = opc__pub_local(peer);
    if (rc == OPCOMMS_OK) {
        rc = opc__pub_over(peer, number, OPC__KIND_DEAD, OPC__DONE_TAKEN, &position, &i);
    }
    if (rc == OPCOMMS_OK) {
        opc__outbox_dead_remove(&peer->outbox, i);
        peer->unflushed++;
        rc = opc__pub_wait_stored(peer, position);
    }
    opc__peer_unlock(peer);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

/* Copies the payload of an entry into a put of its own; the lock may be open meanwhile. */
OPC__FN opcomms_err opc__pub_duplicate(opcomms_peer *p, uint64_t number, opc__order *o) {
    uint8_t piece[4096];
    uint64_t at = 0;
    opcomms_err rc = p->store->c->begin(p->store, &o->put);
    if (rc != OPCOMMS_OK) return rc;
    o->open = 1;
    while (at < o->meta.bytes) {
        size_t got = 0;
        uint32_t i;
        rc = opc__pub_room(p);
        if (rc != OPCOMMS_OK) return rc;
        i = opc__pub_entry(p, number);
        if (i == OPC__ITEMS_NONE) return OPCOMMS_E_NOT_FOUND;
        rc = p->store->c->read(p->store, opc__items_ref(&p->items, i), at, piece, sizeof piece,
                               &got);
        if (rc == OPCOMMS_OK && got == 0) rc = OPCOMMS_E_LOG_DAMAGED;
        if (rc == OPCOMMS_OK) rc = p->store->c->data(p->store, o->put, piece, got);
        if (rc == OPCOMMS_OK) at += got;
        if (rc != OPCOMMS_OK && rc != OPCOMMS_E_AGAIN) return rc;
    }
    return OPCOMMS_OK;
}

/* Dead letter `number` becomes a queued message, in one operation. */
OPC__FN opcomms_err opc__pub_requeue(opcomms_peer *p, uint64_t number, opc__order *o,
                                     uint8_t *dest, uint8_t *context, uint64_t *position) {
    opc__msg_meta *m = &o->meta;
    uint32_t i = opc__pub_entry(p, number);
    opcomms_err rc;
    if (i == OPC__ITEMS_NONE || opc__items_at(&p->items, i)->kind != OPC__KIND_DEAD) {
        return OPCOMMS_E_NOT_FOUND;
    }
    rc = p->store->c->meta(p->store, opc__items_ref(&p->items, i), m, dest, context);
    if (rc != OPCOMMS_OK) return rc;
    m->kind = OPC__KIND_OUT;
    m->attempts = 0;
    m->code = 0;
    m->expires_s = 0;
    m->attempts_max = p->cfg.attempts_max;
    m->time_s = p->plat->wall_s(p->plat->user);
    p->store->c->epoch(p->store, &m->epoch);
    rc = opc__pub_duplicate(p, number, o);
    while (rc == OPCOMMS_OK) {
        rc = opc__pub_room(p);
        if (rc == OPCOMMS_OK) rc = opc__pub_reserve(p, o);
        if (rc == OPCOMMS_OK) {
            rc = p->store->c->hold(p->store, opc__store_need(m) + OPC__STORE_OP + 16u);
        }
        i = opc__pub_entry(p, number);
        if (rc == OPCOMMS_OK && i == OPC__ITEMS_NONE) rc = OPCOMMS_E_NOT_FOUND;
        if (rc == OPCOMMS_OK) rc = opc__pub_queue(p, o, position);
        if (rc == OPCOMMS_OK) {
            rc = p->store->c->done(p->store, opc__items_ref(&p->items, i), number,
                                   OPC__DONE_TAKEN, position);
            if (rc == OPCOMMS_OK) opc__outbox_dead_remove(&p->outbox, i);
            return rc;
        }
        if (rc == OPCOMMS_E_AGAIN) {
            (void)opc__pub_flush(p);
            rc = OPCOMMS_OK;
        }
    }
    return rc;
}

OPCOMMS_API opcomms_err opcomms_dead_requeue(opcomms_peer *peer, uint64_t number,
                                             uint64_t *fresh_number, opcomms_error *err) {
    uint8_t dest[OPC__DEST_MAX], context[OPC__CONTEXT_MAX];
    uint64_t position = 0;
    opc__order o;
    opcomms_err rc;
    if (peer == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    memset(&o, 0, sizeof o);
    opc__mutex_lock(&peer->lock);
    rc = opc__pub_local(peer);
    if (rc == OPCOMMS_OK) rc = opc__pub_requeue(peer, number, &o, dest, context, &position);
    opc__pub_unplace(peer, &o);
    if (rc == OPCOMMS_OK) {
        if (fresh_number != NULL) *fresh_number = o.meta.uid;
        rc = opc__pub_wait_stored(peer, position);
        opc__peer_kick(peer);
    }
    opc__peer_unlock(peer);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

OPCOMMS_API opcomms_err opcomms_next_event(opcomms_peer *peer, uint32_t timeout_ms,
                                           opcomms_event *out) {
    uint64_t start;
    opcomms_err rc = OPCOMMS_OK;
    if (peer == NULL || out == NULL) return OPCOMMS_E_INVAL;
    opc__mutex_lock(&peer->lock);
    start = opc__peer_now(peer);
    while (!opc__peer_event_take(peer, out)) {
        uint64_t left;
        rc = peer->stopping ? OPCOMMS_E_CLOSED : OPCOMMS_E_EMPTY;
        if (peer->stopping || !opc__pub_left(peer, start, timeout_ms, &left)) break;
        if (opc__peer_inside(peer)) rc = OPCOMMS_E_BUSY;
        if (rc == OPCOMMS_E_BUSY) break;
        opc__pub_rest(peer, left);
        rc = OPCOMMS_OK;
    }
    opc__peer_unlock(peer);
    return rc;
}

/* ---- several at once ---- */

OPCOMMS_API opcomms_err opcomms_receive_batch(opcomms_peer *peer, uint8_t id, uint32_t timeout_ms,
                                              opcomms_message **out, size_t cap, size_t *count,
                                              opcomms_error *err) {
    opcomms_err rc = OPCOMMS_OK;
    uint32_t i;
    if (peer == NULL || out == NULL || count == NULL || cap == 0) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    *count = 0;
    opc__mutex_lock(&peer->lock);
    i = opc__pub_await(peer, id, timeout_ms, &rc);
    while (i != OPC__MAILBOX_NONE && *count < cap) {
        rc = opc__pub_hand_out(peer, i, &out[*count]);
        if (rc != OPCOMMS_OK) break;
        ++*count;
        i = opc__mailbox_after(&peer->mailbox, i, peer->visible);
    }
    if (*count > 0) rc = OPCOMMS_OK;
    opc__peer_unlock(peer);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

#define OPC__PUB_BATCH 4096u

/* The messages of a batch are of this peer, and there, and each is in it once; the lock is held. */
OPC__FN opcomms_err opc__pub_batch(const opcomms_peer *p, opcomms_message *const *messages,
                                   size_t count) {
    opcomms_err rc = OPCOMMS_OK;
    size_t i;
    for (i = 0; rc == OPCOMMS_OK && i < count; i++) {
        if (messages[i] == NULL || messages[i]->peer != p || messages[i]->used != 1) {
            rc = OPCOMMS_E_INVAL;
        } else if (!opc__pub_message_lives(messages[i])) {
            rc = OPCOMMS_E_NOT_FOUND;
        } else {
            messages[i]->used = 2; /* seen; until all are */
        }
        if (rc != OPCOMMS_OK) break;
    }
    while (i > 0) messages[--i]->used = 1;
    return rc;
}

/* Acknowledges a batch, whose room is held. */
OPC__FN opcomms_err opc__pub_consume_batch(opcomms_peer *p, opcomms_message *const *messages,
                                           size_t count, uint64_t *position) {
    size_t i;
    for (i = 0; i < count; i++) {
        opcomms_err rc = opc__node_consume(p, messages[i]->entry, position);
        if (rc != OPCOMMS_OK) return rc;
    }
    return OPCOMMS_OK;
}

OPC__FN opcomms_err opc__pub_ack_batch(opcomms_peer *p, opcomms_message *const *messages,
                                       size_t count) {
    uint64_t position = 0;
    opcomms_err rc = opc__pub_batch(p, messages, count);
    while (rc == OPCOMMS_OK) {
        rc = p->store->c->hold(p->store, count * (OPC__STORE_OP + 8u));
        if (rc == OPCOMMS_OK) {
            rc = opc__pub_consume_batch(p, messages, count, &position);
            if (rc == OPCOMMS_OK) rc = p->store->c->write(p->store);
            if (rc != OPCOMMS_OK) opc__peer_failed(p, rc);
            if (p->flushing) p->unwritten = 1;
            return rc;
        }
        if (rc != OPCOMMS_E_AGAIN) return rc;
        if (!opc__pub_flush(p) && p->failed != OPCOMMS_OK) return OPCOMMS_E_POISONED;
        if (p->store == NULL) return OPCOMMS_E_CLOSED;
        rc = opc__pub_batch(p, messages, count);
    }
    return rc;
}

OPCOMMS_API opcomms_err opcomms_ack_batch(opcomms_message *const *messages, size_t count,
                                          opcomms_error *err) {
    opcomms_peer *p;
    opcomms_err rc;
    size_t i;
    if (count == 0) return OPCOMMS_OK;
    if (messages == NULL || messages[0] == NULL || !messages[0]->used) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    p = messages[0]->peer;
    opc__mutex_lock(&p->lock);
    rc = count > OPC__PUB_BATCH ? OPCOMMS_E_LIMIT : OPCOMMS_OK;
    if (rc == OPCOMMS_OK && p->store == NULL) rc = OPCOMMS_E_CLOSED;
    if (rc == OPCOMMS_OK) rc = opc__pub_ack_batch(p, messages, count);
    for (i = 0; i < count; i++) {
        if (messages[i] != NULL && messages[i]->peer == p) opc__pub_drop(messages[i]);
    }
    opc__peer_unlock(p);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

/* What opcomms_commit works on. */
typedef struct opc__deal {
    opcomms_message *const *messages;
    size_t messages_count;
    opc__order *orders;
    size_t orders_count;
    const uint8_t *state;
    size_t state_len;
} opc__deal;

/* All of it at once, in room that is held: the first operation decides. */
OPC__FN opcomms_err opc__pub_deal_done(opcomms_peer *p, const opc__deal *d, uint64_t *position) {
    opcomms_err rc = OPCOMMS_OK;
    size_t i;
    for (i = 0; i < d->orders_count; i++) {
        rc = opc__pub_queue(p, &d->orders[i], position);
        if (rc != OPCOMMS_OK) break;
    }
    if (rc != OPCOMMS_OK && i > 0) { /* a memory store ran out: what was queued goes again */
        while (i > 0) {
            uint32_t entry = opc__items_find(&p->items, d->orders[--i].meta.uid);
            (void)p->store->c->done(p->store, opc__items_ref(&p->items, entry),
                                    d->orders[i].meta.uid, OPC__DONE_CANCELLED, position);
            opc__outbox_remove(&p->outbox, entry);
        }
        return rc == OPCOMMS_E_AGAIN ? OPCOMMS_E_FULL : rc;
    }
    if (rc == OPCOMMS_OK && d->state != NULL) {
        rc = p->store->c->note(p->store, OPC__NOTE_STATE, d->state, d->state_len, position);
        if (rc != OPCOMMS_OK) return rc;
        if (d->state_len > 0) memcpy(p->state, d->state, d->state_len);
        p->state_len = (uint32_t)d->state_len;
        p->state_there = 1;
    }
    if (rc == OPCOMMS_OK) {
        rc = opc__pub_consume_batch(p, d->messages, d->messages_count, position);
    }
    return rc;
}

/* With the lock, which may be open meanwhile. */
OPC__FN opcomms_err opc__pub_deal(opcomms_peer *p, const opc__deal *d, uint64_t *position) {
    opcomms_err rc = opc__pub_local(p);
    size_t need = d->messages_count * (OPC__STORE_OP + 8u), i;
    if (d->state != NULL) need += OPC__STORE_OP + d->state_len;
    if (rc == OPCOMMS_OK && d->state != NULL && p->state == NULL) {
        p->state = (uint8_t *)opc__mem_alloc(&p->mem, OPC__STATE_MAX);
        if (p->state == NULL) rc = OPCOMMS_E_NOMEM;
    }
    for (i = 0; rc == OPCOMMS_OK && i < d->orders_count; i++) {
        rc = opc__pub_place(p, &d->orders[i]);
        need += opc__store_need(&d->orders[i].meta);
    }
    while (rc == OPCOMMS_OK) {
        rc = opc__pub_room(p);
        if (rc == OPCOMMS_OK) rc = opc__pub_batch(p, d->messages, d->messages_count);
        if (rc == OPCOMMS_OK) rc = opc__pub_reserve_all(p, d->orders, d->orders_count);
        if (rc == OPCOMMS_OK) rc = p->store->c->hold(p->store, need);
        if (rc == OPCOMMS_OK) return opc__pub_deal_done(p, d, position);
        if (rc == OPCOMMS_E_AGAIN) {
            (void)opc__pub_flush(p);
            rc = OPCOMMS_OK;
        }
    }
    return rc;
}

#define OPC__PUB_ORDERS 64u

OPCOMMS_API opcomms_err opcomms_commit(opcomms_peer *peer, opcomms_message *const *messages,
                                       size_t messages_count, opcomms_outgoing *outgoing,
                                       size_t outgoing_count, const void *state, size_t state_len,
                                       opcomms_error *err) {
    opc__order *orders = NULL;
    uint64_t position = 0;
    opc__deal d;
    opcomms_err rc = OPCOMMS_OK;
    size_t i;
    if (peer == NULL || (messages == NULL && messages_count > 0) ||
        (outgoing == NULL && outgoing_count > 0) || (state == NULL && state_len > 0)) {
        return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    }
    if (messages_count > OPC__PUB_BATCH || outgoing_count > OPC__PUB_ORDERS ||
        state_len > OPC__STATE_MAX) {
        return opc__err_set(err, OPCOMMS_E_LIMIT, 0, "too much for one operation");
    }
    opc__mutex_lock(&peer->lock);
    if (outgoing_count > 0) {
        orders = (opc__order *)opc__mem_array(&peer->mem, outgoing_count, sizeof *orders);
        if (orders == NULL) rc = opc__err_set(err, OPCOMMS_E_NOMEM, 0, NULL);
    }
    for (i = 0; rc == OPCOMMS_OK && i < outgoing_count; i++) {
        rc = opc__pub_order(peer, &outgoing[i], &orders[i], err);
        if (rc == OPCOMMS_OK) {
            rc = opc__pub_aim(peer, &outgoing[i].to, outgoing[i].address, &orders[i].meta, err);
        }
    }
    if (rc == OPCOMMS_OK) {
        d.messages = messages;
        d.messages_count = messages_count;
        d.orders = orders;
        d.orders_count = outgoing_count;
        d.state = (const uint8_t *)state;
        d.state_len = state_len;
        rc = opc__pub_deal(peer, &d, &position);
        if (rc != OPCOMMS_OK) (void)opc__err_set(err, rc, 0, NULL);
    }
    if (rc == OPCOMMS_OK) {
        for (i = 0; i < outgoing_count; i++) outgoing[i].number = orders[i].meta.uid;
        peer->unflushed++;
        rc = position > 0 ? opc__pub_wait_stored(peer, position) : OPCOMMS_OK;
        for (i = 0; rc == OPCOMMS_OK && i < messages_count; i++) opc__pub_drop(messages[i]);
        if (rc != OPCOMMS_OK) (void)opc__err_set(err, rc, 0, NULL);
        opc__peer_kick(peer);
    }
    for (i = 0; orders != NULL && i < outgoing_count; i++) opc__pub_unplace(peer, &orders[i]);
    if (orders != NULL) opc__mem_free(&peer->mem, orders, outgoing_count * sizeof *orders);
    opc__peer_unlock(peer);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_get_state(opcomms_peer *peer, void *buf, size_t cap, size_t *len) {
    opcomms_err rc = OPCOMMS_OK;
    if (peer == NULL || len == NULL || (buf == NULL && cap > 0)) return OPCOMMS_E_INVAL;
    opc__mutex_lock(&peer->lock);
    if (!peer->state_there) {
        rc = OPCOMMS_E_EMPTY;
    } else {
        *len = peer->state_len;
        if (peer->state_len > cap) {
            rc = OPCOMMS_E_BUFFER;
        } else if (peer->state_len > 0) {
            memcpy(buf, peer->state, peer->state_len);
        }
    }
    opc__peer_unlock(peer);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_backup(opcomms_peer *peer, const char *path, opcomms_error *err) {
    opcomms_err rc;
    int begun = 0;
    if (peer == NULL || path == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    opc__mutex_lock(&peer->lock);
    do {
        rc = opc__pub_local(peer);
        if (rc == OPCOMMS_OK) {
            rc = peer->store->c->backup(peer->store, begun ? NULL : path);
            if (rc == OPCOMMS_OK && !begun) {
                begun = 1;
                rc = OPCOMMS_E_AGAIN;
            }
        }
        if (rc == OPCOMMS_E_AGAIN) { /* the steps make it; before it begins a compaction may end */
            opc__peer_kick(peer);
            opc__pub_rest(peer, 10000u);
        }
    } while (rc == OPCOMMS_E_AGAIN);
    opc__peer_unlock(peer);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, path);
}

OPCOMMS_API opcomms_err opcomms_accept_rollback(opcomms_peer *peer, const char *hash,
                                                opcomms_error *err) {
    uint8_t key[32];
    uint64_t position = 0;
    opcomms_err rc;
    if (peer == NULL) return opc__err_set(err, OPCOMMS_E_INVAL, 0, NULL);
    rc = opc__pub_key(hash, key, err);
    if (rc != OPCOMMS_OK) return rc;
    opc__mutex_lock(&peer->lock);
    rc = opc__pub_local(peer);
    if (rc == OPCOMMS_OK) rc = opc__pub_room(peer);
    if (rc == OPCOMMS_OK) rc = opc__numbers_accept(&peer->numbers, key);
    if (rc == OPCOMMS_OK) {
        rc = opc__peer_note(peer, key, &position);
        if (rc == OPCOMMS_OK) rc = opc__pub_wait_stored(peer, position);
        opc__peer_rouse(peer, key);
        opc__peer_kick(peer);
    }
    opc__peer_unlock(peer);
    return rc == OPCOMMS_OK ? rc : opc__err_set(err, rc, 0, NULL);
}

/* ---- about the peer ---- */

OPCOMMS_API opcomms_err opcomms_get_pubk_hash(const opcomms_peer *peer, char hash[65]) {
    if (peer == NULL || hash == NULL) return OPCOMMS_E_INVAL;
    memcpy(hash, peer->hash_text, 65);
    return OPCOMMS_OK;
}

OPCOMMS_API opcomms_err opcomms_get_address(const opcomms_peer *peer, char *out, size_t cap) {
    char text[64];
    if (peer == NULL || out == NULL) return OPCOMMS_E_INVAL;
    if (peer->bound.family == 0) return OPCOMMS_E_NOT_FOUND;
    opc__id_address_format(&peer->bound, 1, text);
    if (strlen(text) >= cap) return OPCOMMS_E_BUFFER;
    memcpy(out, text, strlen(text) + 1);
    return OPCOMMS_OK;
}

OPCOMMS_API opcomms_err opcomms_get_stats(opcomms_peer *peer, opcomms_stats *stats) {
    opcomms_stats now;
    uint32_t size, i;
    if (peer == NULL || stats == NULL || stats->size < 8) return OPCOMMS_E_INVAL;
    opc__mutex_lock(&peer->lock);
    now = peer->stats;
    now.connections = peer->slots_count + peer->links_count;
    now.unread = peer->mailbox.count;
    now.queued = peer->outbox.queued;
    now.queued_bytes = peer->outbox.bytes;
    now.dead_letters = peer->outbox.dead;
    for (i = 0; i < peer->slots_count; i++) {
        if (peer->slots[i]->flow != NULL) now.native_connections++;
    }
    now.memory_bytes = peer->mem.used;
    if (peer->store != NULL) now.log_bytes = peer->store->c->bytes(peer->store);
    opc__peer_unlock(peer);
    size = stats->size < sizeof now ? stats->size : (uint32_t)sizeof now;
    now.size = size;
    memcpy(stats, &now, size);
    return OPCOMMS_OK;
}

OPCOMMS_API opcomms_err opcomms_pollfds(opcomms_peer *peer, opcomms_pollfd *fds, size_t cap,
                                        size_t *count, int32_t *timeout_ms) {
    opcomms_err rc = OPCOMMS_OK;
    size_t n;
    if (peer == NULL || count == NULL || timeout_ms == NULL || (fds == NULL && cap > 0)) {
        return OPCOMMS_E_INVAL;
    }
    opc__mutex_lock(&peer->lock);
    if (!(peer->cfg.flags & OPCOMMS_NO_BACKGROUND) || peer->pumping) {
        rc = OPCOMMS_E_BUSY;
    } else if (peer->stopping) {
        rc = OPCOMMS_E_CLOSED;
    } else {
        n = opc__node_pollset(peer, timeout_ms);
        *count = n;
        if (n > cap) {
            rc = OPCOMMS_E_BUFFER;
        } else {
            memcpy(fds, peer->fds, n * sizeof *fds);
        }
    }
    opc__peer_unlock(peer);
    return rc;
}

OPCOMMS_API opcomms_err opcomms_poll(opcomms_peer *peer, uint32_t timeout_ms) {
    opcomms_err rc = OPCOMMS_OK;
    if (peer == NULL) return OPCOMMS_E_INVAL;
    opc__mutex_lock(&peer->lock);
    if (!(peer->cfg.flags & OPCOMMS_NO_BACKGROUND) || peer->pumping || opc__peer_inside(peer)) {
        rc = OPCOMMS_E_BUSY;
    } else if (peer->stopping) {
        rc = OPCOMMS_E_CLOSED;
    }
    opc__peer_unlock(peer);
    if (rc != OPCOMMS_OK) return rc;
    return opc__run_pump(peer, timeout_ms > 0x7fffffffu ? -1 : (int32_t)timeout_ms);
}

/* Calls of other threads over links: waits for them a while, then cuts them off. */
OPC__FN void opc__pub_stop_links(opcomms_peer *p) {
    uint64_t stop_at = opc__peer_now(p) + OPC__PEER_STOP_US;
    int cut = 0;
    for (;;) {
        uint32_t i, busy = 0;
        for (i = 0; i < p->links_count; i++) busy += p->links[i]->refs;
        if (busy == 0) return;
        if (!cut && opc__peer_now(p) >= stop_at) {
            cut = 1;
            for (i = 0; i < p->links_count; i++) {
                opc__link *l = p->links[i];
                opc__mutex_lock(&l->lock);
                l->kill = OPCOMMS_E_CLOSED;
                if (l->sock != OPCOMMS_NO_HANDLE) p->plat->sock_shutdown(p->plat->user, l->sock, 1);
                opc__link_tell(l);
                opc__mutex_unlock(&l->lock);
            }
        }
        opc__cond_wait(&p->changed, &p->lock, 50000u);
    }
}

OPCOMMS_API opcomms_err opcomms_stop(opcomms_peer *peer) {
    opcomms_err rc;
    if (peer == NULL) return OPCOMMS_E_INVAL;
    opc__mutex_lock(&peer->lock);
    if (opc__peer_inside(peer)) {
        opc__peer_unlock(peer);
        return OPCOMMS_E_BUSY;
    }
    if (peer->stopping) { /* a second stop waits for the first */
        while (!peer->stopped) opc__cond_wait(&peer->changed, &peer->lock, 50000u);
        rc = peer->failed;
        opc__peer_unlock(peer);
        return rc;
    }
    peer->stopping = 1;
    opc__cond_all(&peer->changed);
    opc__pub_stop_links(peer);
    opc__peer_unlock(peer);
    opc__run_end(peer);
    opc__mutex_lock(&peer->lock);
    /* A flush in the thread of a caller that is consuming a message still uses the store. */
    while (peer->flushing) opc__cond_wait(&peer->changed, &peer->lock, 50000u);
    rc = opc__pub_close(peer);
    while (peer->waiters > 0) opc__cond_wait(&peer->changed, &peer->lock, 50000u);
    peer->failed = rc;
    peer->stopped = 1;
    opc__cond_all(&peer->changed);
    opc__peer_unlock(peer);
    return rc;
}

OPCOMMS_API void opcomms_free(opcomms_peer *peer) {
    if (peer == NULL) return;
    (void)opcomms_stop(peer); /* its result is had by calling it before */
    opc__pub_destroy(peer);
}

#ifdef __cplusplus
}
#endif

#endif /* OPCOMMS_IMPLEMENTATION */

/*
MIT License

Copyright (c) 2026 the opcomms authors

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
*/
