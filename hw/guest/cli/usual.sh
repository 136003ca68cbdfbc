# A virtual machine with all devices and with two processors. The SMM handler answers code 0x5a (hw/shared/src/smm.rs), and counts
# what it is sent, for `smis`. On the machine of the control nobody answers: neither the handler nor the VMware backdoor nor
# pc-testdev.
. /cli/rows.sh

# Without privilege the command says what is missing.
row 0 'ioemul check'
row 4 'says CAP_SYS_RAWIO setpriv --reuid nobody ioemul check'
row 4 'says CAP_SYS_RAWIO setpriv --reuid nobody ioemul in 0x71'
row 4 'setpriv --reuid nobody ioemul smi send 0x5a --yes'
row 2 'says CPU ioemul --cpu 9 in 0x71'

# Each read next to Debian's. Index 0x0d selects a byte of the clock that stays the same.
row 0 'outb 0x70 0x0d'
row 0 'cmp <(inb 0x71) <(ioemul in 0x71 -q)'
row 0 'for port in 0x21 0x92 0xe0 0x2fd 0xcd4; do cmp <(inb $port) <(ioemul in $port -q) || exit; done'
row 0 'for port in 0xe0 0xe2 0xcf8; do cmp <(inw $port) <(ioemul in $port.w -q) || exit; done'
row 0 'for port in 0xe0 0xcf8; do is $(($(inl $port) & 0xffffffff)) $(ioemul in $port.l -q) || exit; done'

# Whoever closes the pipe hears nothing more.
row 0 'ioemul in 0x71 -q 2> heard | head -c 0; is "0 " "${PIPESTATUS[0]} $(cat heard)"'

# What one writes the other reads, at the latch of pc-testdev.
here 0 'outl 0xe0 0x12345678; is $((0x12345678)) $(ioemul in 0xe0.l -q) && is $((0x1234)) $(ioemul in 0xe2.w -q)'
here 0 'ioemul out 0xe0.l 0x89abcdef --yes; is 89abcdef $(inl --hex 0xe0) && is ab $(inb --hex 0xe2)'
here 0 'ioemul out 0xe2.w 0x4321 --yes; ioemul out 0xe1 0x65 --yes; is 432165ef $(inl --hex 0xe0)'

# Any instruction with any registers, and a register behind an index.
here 0 'outb 0xe0 0x41; ioemul exec "in al, dx" rdx=0xe0 --expect al=0x41'
here 0 'ioemul exec "out 0xe0, ax" rax=0x1234 --yes; is 1234 $(inw --hex 0xe0)'
row 3 'ioemul exec "out 0xe0, ax" rax=0x1234'
row 3 'says "--allow-hazard 0x70" ioemul ix 0x70:0x71 0x0d'
row 3 'says "--yes" ioemul ix 0x70:0x71 0x0d --allow-hazard 0x70 --allow-busy 0x70'
row 3 'says "--allow-busy 0x70" ioemul ix 0x70:0x71 0x0d --allow-hazard 0x70'
row 0 'is 128 "$(ioemul ix 0x70:0x71 0x0d -q --yes --allow-hazard 0x70 --allow-busy 0x70)"'

# The quirk of this machine stands for a write of its mailbox.
here 0 'says ProLiant ioemul -n out 0xcd4 0x85'

# Nothing is written without a yes, nor to a hazard, nor where a driver is.
row 3 'ioemul out 0xe0 1'
row 3 'ioemul out 0xcf9 6 --yes'
row 3 'says "--allow-hazard 0xcf9" ioemul out 0xcf9 6 --yes'
row 3 'says "--allow-busy 0x21" ioemul out 0x21 0xff --yes --allow-hazard 0x21'

# The clock, which the kernel has set its own by.
is_now() {
    local apart=$(($(date -u +%s) - $(date -u -d "$1" +%s)))
    echo "$1 is $apart s ago"
    [ ${apart#-} -le 3 ]
}
row 3 'says rtc ioemul cmos date'
row 0 'is_now "$(ioemul cmos date -q --allow-busy 0x70)"'

# One SMI. No register but RAX and RBX is given; the handler moves the complement of each register to its neighbour, and bit 0 of
# RBX to CF.
row 0 'smis forget'
row 3 'ioemul smi send 0x5a rbx=1'
row 0 'ioemul -n smi send 0x5a rbx=1 --yes'
row 0 'setpriv --reuid nobody ioemul -n smi send 0x5a rbx=1'
row 0 'is "" "$(smis)"'
here 0 'says "CF set" ioemul smi send 0x5a rbx=1 --yes'
here 0 'is "0x5a 1" "$(smis)"'
here 0 'ioemul smi send 0x5a rbx=1 --yes --json | grep "\"cf\":true" | grep -q "\"rdx\":\"0xfffffffffffffffe\""'
here 0 'ioemul smi send 0x5a rbx=1 --yes --expect rdx=0xfffffffffffffffe --expect r15=0xffffffffffffffa5'
here 5 'ioemul smi send 0x5a rbx=1 --yes --expect rdx=0'
row 5 'ioemul smi send 0x5a rbx=1 --yes --expect rdx=0x1234'
row 2 'ioemul smi send 0x5a rbx=1 rbx=2 --yes'

# Nobody counts SMIs here, and the time that one takes is no proof; but what changed a register was one.
row 0 'ioemul smi send 0x5a rbx=1 --yes > sent.txt 2>&1; cat sent.txt; ! { grep -q "rdx.*->" sent.txt && grep -q "no SMI" sent.txt; }'

# Every register has a value of its own, and comes back in the place of its neighbour.
exchanged() {
    local register given=() expected=() neighbour=rax value=0x11
    for register in rcx rdx rbx rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15; do
        given+=($register=$value)
        expected+=(--expect $(printf "$neighbour=%#x" $((~value))))
        neighbour=$register
        value=$((value + 1))
    done
    ioemul smi send 0x5a "${given[@]}" --yes "${expected[@]}" --expect r15=0xffffffffffffffa5
}
here 0 'exchanged'

# On a terminal the command asks.
row 3 'says "ProLiant DL380 G5" answering n "ioemul smi send 0x5a rbx=1"'
row 3 'answering "" "ioemul smi send 0x5a rbx=1"'
here 0 'smis forget; answering yes "ioemul smi send 0x5a rbx=1"; is "0x5a 1" "$(smis)"'

# What was recorded is replayed by a user without privilege, and only if the command is the same.
row 0 'ioemul --record sent smi send 0x5a rbx=1 --yes'
row 0 'setpriv --reuid nobody ioemul trace replay sent -- smi send 0x5a rbx=1'
row 5 'setpriv --reuid nobody ioemul trace replay sent -- smi send 0x5a rbx=2'
row 0 'setpriv --reuid nobody ioemul trace show sent'

# A capability is enough for the ports; what else is root's, a user with it has to be given.
rawio="setpriv --reuid nobody --inh-caps +sys_rawio --ambient-caps +sys_rawio"
row 0 '$rawio ioemul in 0x71'
row 4 '$rawio ioemul smi send 0x5a rbx=1 --yes'
row 0 'cat /sys/firmware/acpi/tables/FACP > fadt'
row 3 'says /proc/ioports $rawio ioemul --fadt fadt smi send 0x5a rbx=1 --yes'
here 0 '$rawio ioemul --fadt fadt smi send 0x5a rbx=1 --yes --allow-busy 0xb2-0xb3 --expect rdx=0xfffffffffffffffe'
here 0 '$rawio ioemul out 0xe0 0x42 --yes --allow-busy 0xe0; is 66 $(inb 0xe0)'

# This is no Dell.
row 3 'ioemul dell info'
row 1 'says Dell ioemul dell info --yes'

# A scan of all codes but those of ACPI, each of them once.
row 0 'smis forget'
row 3 'ioemul smi scan --log scanned'
row 0 'is "" "$(smis)"'
here 0 'is 1 "$(ioemul smi scan --yes --log scanned | tee scan | grep -c "^0x5a")"'
row 0 'cat scan; grep skipped scan | grep 0xf0 | grep -q 0xf1'
here 0 'is 254 "$(smis | grep -c " 1$")" && is "0 0" "$(smis 0xf0) $(smis 0xf1)"'

# A scan is killed in the middle of an SMI: the handler does not come back from code 0x77 while pc-testdev's latch says so. The shell
# goes on on the other processor. The kernel delivers the signal as soon as it has the first one back, and so before the command
# can note that the SMI is over.
kill_in_smi() {
    taskset -p 2 $BASHPID
    outw 0xe0 0x5177
    ioemul smi scan --yes --log killed > /dev/null &
    local tries
    for ((tries = 0; tries < 1000; tries++)); do
        [ -e killed ] && tail -n 1 killed | grep -q 'about_to.*0xb2.*"rax":"0x[0-9a-f]*77"' && break
        kill -0 $! || break
        sleep 0.01
    done
    kill -9 $!
    outw 0xe0 0
    wait $!
    is 137 $?
}
row 0 'smis forget'
here 0 'kill_in_smi'
here 0 'is "1 0" "$(smis 0x77) $(smis 0x78)"'
here 0 'ioemul trace show killed | tail -n 2 | tee end; grep "did not return" end | grep -q 0x77'
row 0 'ioemul smi scan --yes --log killed --resume | tee end; exit ${PIPESTATUS[0]}'
here 0 'grep "did not return" end | grep -q 0x77'
here 0 'is 1 "$(ioemul trace show killed | grep -c "did not return")"'
here 0 'is 254 "$(smis | grep -c " 1$")" && is "0 0" "$(smis 0xf0) $(smis 0xf1)"'

# The VMware backdoor, as QEMU has it.
here 0 'ioemul vmware info'
here 0 'says 564d5868 ioemul vmware call 10'
row 1 'ioemul vmware get greeting'
row 4 'says CAP_SYS_RAWIO setpriv --reuid nobody ioemul vmware info'

# This processor is none of Intel's: it does not count its SMIs.
row 1 'ioemul smi count'
row 0 'says 0xb2 ioemul smi info'
row 0 'says rtc ioemul ports 0x70-0x71'

# With leave to do so the register does what it is for.
last 'ioemul out 0xcf9 6 --yes --allow-hazard 0xcf9 --allow-busy 0xcf9'
