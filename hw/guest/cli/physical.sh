# A q35 whose CPU is Intel's and does not say that it is virtual, without a VMware backdoor. On the machine of the control, which
# is virtual and has one, the SMM handler does not answer.
. /cli/rows.sh

# A scan of a real machine wants that machine's name.
here 3 'says "ProLiant DL380 G5" ioemul smi scan --yes --log unnamed'
here 3 'ioemul smi scan --yes --log misnamed --host "ProLiant DL380 G6"'
row 0 'smis forget'
row 0 'ioemul smi scan --yes --log named --host "ProLiant DL380 G5" > scan; cat scan'

# The codes of ACPI are this machine's: 2 and 3, and not those of the other one.
here 0 'grep skipped scan | grep 0x02 | grep -q 0x03'
here 0 'is "0 0 1 1" "$(smis 0x02) $(smis 0x03) $(smis 0xf0) $(smis 0xf1)"'

# SMIs are counted by a register of Intel's, once the kernel's driver is there.
here 1 'says modprobe ioemul smi count'
row 0 'insmod /lib/msr.ko; sleep 0.1'
here 0 'ioemul smi count'
here 0 'before=$(ioemul smi count -q) && ioemul -n smi send 0x5a && is $before $(ioemul smi count -q)'
here 0 'before=$(ioemul smi count -q) && ioemul smi send 0x5a --yes && is $((before + 1)) $(ioemul smi count -q)'
here 0 'says "SMI count +1" ioemul smi send 0x5a --yes'
here 0 'ioemul smi scan --codes 0x5a,0x5b --yes --log counted --host "ProLiant DL380 G5" | grep "^0x5a.*+1 "'
here 0 'says "SMIs so far" ioemul smi info'
here 4 'setpriv --reuid nobody ioemul smi count'

# Nobody answers at the VMware backdoor.
here 1 'ioemul vmware info'
here 1 'ioemul vmware call 10'

last 'ioemul out 0xcf9 6 --yes --allow-hazard 0xcf9 --allow-busy 0xcf9'
