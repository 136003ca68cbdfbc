# What the scripts of this directory share. The host reads the rows of a script as well (`Row` in hw/shared/src/cli.rs), so
# that it knows which results to wait for: a row is one line that starts at the left margin.

number=0

# row CODE 'COMMAND': the command has to end with this exit code, without a terminal and with nothing on its standard input.
# The host compares, and shows what the command printed if the code is another one.
row() {
    number=$((number + 1))
    (eval "$2") > /tmp/said 2>&1 < /dev/null
    local code=$? line
    while IFS= read -r line || [ -n "$line" ]; do
        printf 'ioemul|said|%d|%s\n' $number "$line"
    done < /tmp/said
    printf 'ioemul|row|%d|%d\n' $number $code
}

# The same for what depends on this machine, and so has to fail on the machine of the negative control.
here() {
    row "$@"
}

# last 'COMMAND': the command has to be the end of the machine. It is the control of every row that the machine survived.
last() {
    printf 'ioemul|end\n'
    sleep 0.2 # until the console has written that
    eval "$1"
    sleep 1
    printf 'ioemul|error|the machine is still there behind: %s\n' "$1"
    exit 1
}

# says TEXT COMMAND…: ends as the command does if the command printed this text, on either stream, and with 99 if it did not.
says() {
    local text=$1 printed code
    shift
    printed=$("$@" 2>&1)
    code=$?
    printf '%s\n' "$printed"
    [[ $printed == *"$text"* ]] && return $code
    echo "it does not say: $text"
    return 99
}

# is EXPECTED FOUND: whether two texts are the same.
is() {
    [ "$1" = "$2" ] && return
    printf 'expected: %s\nfound:    %s\n' "$1" "$2"
    return 1
}

# as_nobody COMMAND…
as_nobody() {
    setpriv --reuid nobody "$@"
}

# answering ANSWER COMMAND: runs a command line on a terminal of its own, where this is typed.
answering() {
    echo "$1" | script -qec "$2" /dev/null
}

busybox --install -s /busybox
cd /tmp
umask 022
