# Behind figures.awk: an SVG of bars. -v about=TEXT: the line below it.

function text(x, y, class, s) {
    printf "<text x=\"%d\" y=\"%d\" class=\"%s\">%s</text>\n", x, y, class, s
}

function bar(x, y, class, label, v, most, size,    w) {
    text(x, y + 13, "label", label)
    if (v == "") {
        text(x + 92, y + 13, "label", "not measured")
        return
    }
    w = most > 0 ? v / most * 190 : 0
    printf "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"16\" rx=\"2\" class=\"%s\"/>\n", x + 92,
        y + 1, w < 1 ? 1 : w, class
    text(x + 98 + w, y + 13, "value", speed(v, size))
}

function panel(x, y, title, size, ours, zmq, raw,    a, b, c, most) {
    a = med(ours)
    b = med(zmq)
    c = med(raw)
    most = a + 0
    if (b + 0 > most) most = b + 0
    if (c + 0 > most) most = c + 0
    text(x, y, "title", title)
    bar(x, y + 8, "ours", "opcomms", a, most, size)
    bar(x, y + 29, "zmq", "libzmq", b, most, size)
    bar(x, y + 50, "raw", "raw limit", c, most, size)
}

END {
    large = 16384
    window[64] = window[1024] = large
    window[65536] = 1024
    print "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 780 398\" width=\"780\"" \
        " height=\"398\" role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"12\">"
    print "<title>Speed of opcomms beside libzmq CURVE and the raw limits</title>"
    print "<style>.head{font-weight:600;font-size:14px}.title{font-weight:600}"
    print ".head,.title,.value{fill:#1f2328}.label,.foot{fill:#59636e}.foot{font-size:11px}"
    print ".ours{fill:#1f6feb}.zmq{fill:#8b949e}"
    print ".raw{fill:#8b949e;fill-opacity:.18;stroke:#8b949e}"
    print "@media(prefers-color-scheme:dark){.head,.title,.value{fill:#f0f6fc}"
    print ".label,.foot{fill:#9198a1}.ours{fill:#4493f8}}</style>"
    text(10, 22, "head", "In memory at both ends")
    text(400, 22, "head", "Acknowledged after fdatasync at the receiver")
    y = 50
    for (size = 64; size <= 65536; size *= size < 1024 ? 16 : 64) {
        name = size_text(size) (size == 64 ? ": messages a second" : ": MB a second")
        panel(10, y, name, size, "our.memory." large "." size ".rate", "zmq.flow." size ".rate",
            "raw.tls." size ".rate")
        panel(400, y, name, size, "our.receiver." window[size] "." size ".rate",
            "zmq.durable." window[size] "." size ".rate",
            "raw.durable." window[size] "." size ".rate")
        y += 98
    }
    text(10, y + 4, "foot", "One process a side, two processors, loopback, TLS or CURVE; " \
        "medians of " rounds " interleaved rounds. " about)
    text(10, y + 20, "foot", "Raw limit: bare BearSSL with full records; on the right with append " \
        "and fdatasync by a second thread.")
    text(10, y + 36, "foot", "libzmq on the right has a log written by hand: append, fdatasync, " \
        "acknowledge.")
    print "</svg>"
}
