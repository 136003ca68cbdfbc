# A kernel with lockdown=integrity, which gives nobody a port. The machine of the control has the same kernel without it.
. /cli/rows.sh

# Debian's programs fail as well.
here 1 'inb 0x71'

# The command names the lockdown, to root and to others.
here 4 'says "kernel is locked down" ioemul in 0x71'
here 4 'says "kernel is locked down" ioemul check'
here 4 'ioemul smi send 0x5a --yes'
here 4 'ioemul vmware info'
here 4 'says "kernel is locked down" setpriv --reuid nobody ioemul in 0x71'
row 4 'says CAP_SYS_RAWIO setpriv --reuid nobody ioemul in 0x71'
here 0 'ioemul in 0x71 --json | grep no_privilege | grep -q "\"lockdown\":true"'

# What needs no privilege goes on.
row 0 'ioemul -n smi send 0x5a'
row 0 'ioemul --on bus:pc in 0x71'
