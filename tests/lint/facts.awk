# Facts about C code that went through code.awk, one a line, fields separated by tabs. The sections
# are in the file `banners`: LINE TAG LAYER.
#   KIND NAME LINE SECTION TEXT     what is defined or declared at file scope; KIND is one of
#       function (TEXT: number of lines, then its head), proto, variable, type, constant, macro,
#       include, forward
#   local NAME LINE SECTION TEXT    a static variable of a function
#   use NAME LINE SECTION BEFORE AFTER IN   an identifier, the tokens around it, its function
# Only what this code base contains is understood; what is not understood is a fact "unknown".
BEGIN {
    FS = "\t"
    OFS = "\t"
    section = "public"
    while ((getline line < banners) > 0) { # LINE TAG LAYER
        split(line, f, " ")
        banner[f[1]] = f[2]
    }
}
FNR in banner { section = banner[FNR] }

/^#[ ]*ifdef __cplusplus/ { foreign = 1 } # extern "C" and its closing brace
foreign {
    if ($0 ~ /^#[ ]*endif/) foreign = 0
    next
}
directive || /^[ ]*#/ {
    preprocessor($0)
    directive = $0 ~ /\\$/
    next
}
{ tokens($0, 0) }
END {
    if (depth != 0 || parens != 0) print "unknown", "end", FNR, section, "braces do not match"
}

function preprocessor(s, word, name) {
    if (!directive) {
        macro = ""
        if (match(s, /^[ ]*#[ ]*include[ ]*/)) {
            print "include", substr(s, RSTART + RLENGTH), FNR, section, ""
            return
        }
        if (match(s, /^[ ]*#[ ]*define[ ]+/)) {
            s = substr(s, RSTART + RLENGTH)
            match(s, /^[A-Za-z0-9_]+/)
            macro = substr(s, 1, RLENGTH)
            print "macro", macro, FNR, section, ""
            s = substr(s, RLENGTH + 1)
        } else if (s ~ /^[ ]*#[ ]*error/) {
            macro = "#error"
            return
        } else {
            sub(/^[ ]*#[ ]*[a-z]+/, "", s)
        }
    } else if (macro == "#error") {
        return
    }
    tokens(s, 1)
}

function tokens(s, in_macro, t) {
    before = ""
    while (match(s, /[A-Za-z_][A-Za-z0-9_]*|[0-9][A-Za-z0-9_.]*|->|[^ \t]/)) {
        t = substr(s, RSTART, RLENGTH)
        s = substr(s, RSTART + RLENGTH)
        if (t ~ /^[A-Za-z_]/) {
            after = ""
            if (match(s, /[^ \t]/)) after = substr(s, RSTART, 1)
            print "use", t, FNR, section, before == "" ? last : before, after, name
        }
        if (!in_macro) step(t)
        before = t
    }
    if (before != "") last = before
}

# The file as a sequence of statements at file scope; `head` is what was read of the current one.
function step(t) {
    if (depth == 0 && head == "") head_line = FNR
    if (t == "(") parens++
    if (t == ")") parens--
    if (t == "{") {
        if (depth == 0) open_brace()
        depth++
        member = ""
    } else if (t == "}") {
        depth--
        if (depth == 0) {
            if (kind == "function") {
                print "function", name, head_line, section, (FNR - head_line + 1) " " head
                restart()
                return
            }
            head = head " {}"
            return
        }
    } else if (depth == 0) {
        head = head (head == "" ? "" : " ") t
        if (t == ";" && parens == 0) close_statement()
        return
    }
    if (depth > 0 && kind == "enum") enum_token(t)
    if (depth > 0 && kind == "function") local_token(t)
}

function restart() {
    head = ""
    kind = ""
    name = ""
    local = ""
}

function open_brace() {
    name = ""
    if (head ~ / =$/) kind = "variable"
    else if (head ~ /^(typedef )?enum( |$)/) kind = "enum"
    else if (head ~ /^(typedef )?(struct|union)( |$)/) kind = "type"
    else if (head ~ /\)$/) {
        kind = "function"
        name = called(head)
    } else {
        kind = "unknown"
        print "unknown", "brace", FNR, section, head
    }
}

# The name in front of the parameters: "OPC__FN int opc__f ( void )".
function called(h) {
    while (match(h, /__attribute__ \( \( [^)]*(\( [^)]* \) )?\) \) /)) {
        h = substr(h, 1, RSTART - 1) substr(h, RSTART + RLENGTH)
    }
    if (!match(h, /[A-Za-z0-9_]+ \(/)) return ""
    return substr(h, RSTART, RLENGTH - 2)
}

function close_statement(h, f, n) {
    h = head
    if (h ~ /^OPC__STATIC_ASSERT \(/ || h == ";") {
        restart()
        return
    }
    if (h ~ /^typedef /) {
        if (match(h, /\( \* [A-Za-z0-9_]+ \)/)) { # a pointer to a function
            print "type", substr(h, RSTART + 4, RLENGTH - 6), head_line, section, h
        } else {
            n = split(h, f, " ")
            print (h ~ /\{\}/ || h !~ /^typedef (struct|union) /) ? "type" : "forward", \
                f[n - 1], head_line, section, h
        }
    } else if (h ~ /^(struct|union|enum) ([A-Za-z0-9_]+ )?(\{\} )?;$/) {
        split(h, f, " ")
        if (f[2] != "{}") print h ~ /\{\}/ ? "type" : "forward", f[2], head_line, section, h
    } else if (h !~ / = / && h ~ /\(/) {
        print "proto", called(h), head_line, section, h
    } else {
        sub(/ (=|\[|;).*/, "", h)
        n = split(h, f, " ")
        print "variable", f[n], head_line, section, head
    }
    restart()
}

function enum_token(t) {
    if (t == "," || t == "{") {
        member = ""
    } else if (member == "" && t ~ /^[A-Za-z_]/) {
        member = t
        print "constant", t, FNR, section, ""
    }
}

function local_token(t, f, n, h) {
    if (t == "static") {
        local = t
    } else if (local != "") {
        if (t == "=" || t == ";" || t == "[") {
            n = split(local, f, " ")
            print "local", f[n], FNR, section, local
            local = ""
        } else {
            local = local " " t
        }
    }
}
