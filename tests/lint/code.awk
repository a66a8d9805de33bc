# The code alone: a comment becomes a blank, the inside of a string or character constant becomes
# an s, every token keeps its line. A // comment is kept, for the rule that refuses it.
{
    line = $0
    out = ""
    while (line != "") {
        if (in_comment) {
            at = index(line, "*/")
            if (at == 0) break
            in_comment = 0
            out = out " "
            line = substr(line, at + 2)
        } else if (quote != "") { # to the closing quote; what is escaped does not close
            c = substr(line, 1, 1)
            line = substr(line, c == "\\" ? 3 : 2)
            if (c == quote) {
                out = out "s" quote
                quote = ""
            }
        } else if (match(line, /"|'|\/\*|\/\//)) {
            what = substr(line, RSTART, RLENGTH)
            out = out substr(line, 1, RSTART - 1)
            line = substr(line, RSTART + RLENGTH)
            if (what == "/*") {
                in_comment = 1
            } else if (what == "//") {
                out = out what
                break
            } else {
                out = out what
                quote = what
            }
        } else {
            out = out line
            break
        }
    }
    if (quote != "") out = out "\\" # the string goes on in the next line
    print out
}
