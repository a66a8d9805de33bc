# Behind figures.awk: rows "name|ours|libzmq|raw|ratio|target|reached".

function row(name, ours, zmq, raw, x, target, reached) {
    print name "|" ours "|" zmq "|" raw "|" (x == "" ? "" : sprintf("%.2f", x)) "|" target "|" \
        reached
}

# Reached or not, or not measured.
function verdict(x, limit, up) {
    if (x == "") return "not measured"
    return (up ? x >= limit : x <= limit) ? "reached" : "NOT reached"
}

function pair(key, a, b, scale) {
    if (med(key "." a) == "") return ""
    return number(med(key "." a) / scale) " / " number(med(key "." b) / scale)
}

# Delay and memory of a flow.
function more(ours, zmq, raw) {
    row("  from handing over to having, p50 / p99 ms", pair(ours, "p50", "p99", 1000),
        pair(zmq, "p50", "p99", 1000), pair(raw, "p50", "p99", 1000))
    row("  most resident, sender / receiver: MB", pair(ours, "kb_out", "kb_in", 1000),
        pair(zmq, "kb_out", "kb_in", 1000), pair(raw, "kb_out", "kb_in", 1000))
}

# times: at least so many times libzmq; mb: at least so many MB/s; both 0: no target.
function flow(name, size, ours, zmq, raw, times, mb,    x, target, reached) {
    x = ratio(ours ".rate", zmq ".rate")
    if (times > 0) {
        target = ">= " times " x libzmq"
        reached = verdict(x, times, 1)
    } else if (mb > 0) {
        target = ">= " mb " MB/s"
        reached = med(ours ".rate")
        if (reached != "") reached = reached * size / 1e6
        reached = verdict(reached, mb, 1)
    }
    row(name ", " size_text(size) ": " unit(size), speed(med(ours ".rate"), size),
        speed(med(zmq ".rate"), size), speed(med(raw ".rate"), size), x, target, reached)
}

function memory(size, times,    ours) {
    ours = "our.memory." large "." size
    flow("in memory", size, ours, "zmq.flow." size, "raw.tls." size, times, 0)
    more(ours, "zmq.flow." size, "raw.tls." size)
}

function durable(size, window, times, mb,    ours, zmq, raw) {
    ours = "our.receiver." window "." size
    zmq = "zmq.durable." window "." size
    raw = "raw.durable." window "." size
    flow("durable at the receiver, window " number(window), size, ours, zmq, raw, times, mb)
    more(ours, zmq, raw)
}

function both(size, window, times, mb,    ours) {
    ours = "our.both." window "." size
    flow("durable at both, window " number(window), size, ours, "zmq.durable." window "." size, "",
        times, mb)
    more(ours, "", "")
}

function trip(name, key, size, raw, limit,    x) {
    x = ratio(key ".p50", raw)
    row(name ", " size_text(size) ": p50 / p99 us", pair(key, "p50", "p99", 1),
        pair("zmq.trip." size, "p50", "p99", 1), number(med(raw)), x,
        limit ? "<= " limit " x raw" : "", limit ? verdict(x, limit, 0) : "")
}

END {
    large = 16384
    small = 1024
    memory(64, 4)
    memory(1024, 2.5)
    memory(65536, 1.3)
    durable(64, large, 5, 0)
    durable(64, small, 5, 0)
    durable(1024, large, 0, 250)
    durable(1024, small, 0, 0)
    durable(65536, small, 0, 0)
    both(64, large, 2.5, 0)
    both(1024, large, 0, 125)
    both(65536, small, 0, 0)
    for (size = 64; size <= 65536; size *= size < 1024 ? 16 : 64) {
        key = "our.trip.pump." size
        trip("blocking send, the caller pumps", key, size, key ".raw_p50", size == 64 ? 1.5 : 0)
        key = "our.trip.thread." size
        trip("blocking send, background thread", key, size, key ".raw_p50", size == 64 ? 2 : 0)
    }
    for (size = 64; size <= 1024; size *= 16) {
        key = "our.trip.durable." size
        sum(key ".raw_all", key ".raw_p50", key ".disk_p50")
        trip("blocking send, durable", key, size, key ".raw_all", size == 64 ? 1.3 : 0)
        row("  raw: round trip + append, fdatasync: us", "", "",
            pair(key, "raw_p50", "disk_p50", 1))
        key = "our.trip.durable_pump." size
        sum(key ".raw_all", key ".raw_p50", key ".disk_p50")
        trip("  the same, the caller pumps", key, size, key ".raw_all", 0)
    }
    x = med("our.enqueue.64.ns")
    row("enqueue of 64 B, never synced: ns a call", number(x), "", "", "", "<= 300 ns",
        verdict(x, 300, 0))
    row("  p50 / p99 ns", pair("our.enqueue.64", "p50", "p99", 1))
    x = ratio("our.open.0.ms", "our.open.0.raw_ms")
    ms = med("our.open.0.ms")
    row("open " number(med("our.open.0.mb")) " MB, " number(med("our.open.0.unread")) \
        " unread; raw: read, checksum: ms", number(ms), "", number(med("our.open.0.raw_ms")), x,
        "<= 1.5 s or 2 x", ms != "" && ms <= 1500 ? "reached" : verdict(x, 2, 0))
    row("  most resident: MB", ms == "" ? "" : number(med("our.open.0.kb") / 1000))
    row("raw: AES-128-GCM at 64 B, 1 KiB, 16 KiB: MB/s", "", "",
        number(med("raw.aead.64.mb")) ", " number(med("raw.aead.1024.mb")) ", " \
        number(med("raw.aead.16384.mb")))
    row("raw: append, fdatasync of one of 64 B, 1 KiB, 64 KiB: us", "", "",
        number(med("raw.append.1.64.p50")) ", " number(med("raw.append.1.1024.p50")) ", " \
        number(med("raw.append.1.65536.p50")))
    row("raw: the same of 1 024 x 64 B, 16 384 x 64 B, 1 024 x 1 KiB: us", "", "",
        number(med("raw.append.1024.64.p50")) ", " number(med("raw.append.16384.64.p50")) ", " \
        number(med("raw.append.1024.1024.p50")))
}
