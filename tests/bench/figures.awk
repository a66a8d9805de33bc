# Reads lines "ROUND key value"; the table and the chart ask for medians of rounds.

{
    value[$1, $2] = $3
    if ($1 > rounds) rounds = $1
}

function middle(v, n,    i, j, t) {
    if (n == 0) return ""
    for (i = 2; i <= n; i++) {
        t = v[i]
        for (j = i - 1; j > 0 && v[j] > t; j--) v[j + 1] = v[j]
        v[j + 1] = t
    }
    return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
}

# The median of a key over all rounds; "" when there is none.
function med(key,    r, n, v) {
    for (r = 1; r <= rounds; r++) if ((r, key) in value) v[++n] = value[r, key]
    return middle(v, n)
}

# The median of the ratios of two keys, each of one round.
function ratio(a, b,    r, n, v) {
    for (r = 1; r <= rounds; r++) {
        if ((r, a) in value && (r, b) in value && value[r, b] > 0) {
            v[++n] = value[r, a] / value[r, b]
        }
    }
    return middle(v, n)
}

# A key of its own for the sum of two in each round.
function sum(name, a, b,    r) {
    for (r = 1; r <= rounds; r++) {
        if ((r, a) in value && (r, b) in value) value[r, name] = value[r, a] + value[r, b]
    }
}

# 1234567 as 1 234 567; a small one with a digit behind the point.
function number(x,    s, out) {
    if (x == "") return ""
    if (x < 100) return sprintf("%.1f", x)
    s = sprintf("%.0f", x)
    while (length(s) > 3) {
        out = " " substr(s, length(s) - 2) out
        s = substr(s, 1, length(s) - 3)
    }
    return s out
}

# Messages a second of that size as MB a second; at 64 B as they are.
function speed(x, size) {
    if (x == "" || size == 64) return number(x)
    return number(x * size / 1e6)
}
function size_text(size) { return size == 64 ? "64 B" : size / 1024 " KiB" }
function unit(size) { return size == 64 ? "messages/s" : "MB/s" }
