# Sourced by the part scripts: step NAME COMMAND... is one test; `total` prints the count.
passed=0
failed=0

step() {
    step_name=$1
    shift
    if step_out=$("$@" 2>&1); then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED $step_name"
        echo "$step_out"
    fi
}

total() {
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ]
}
