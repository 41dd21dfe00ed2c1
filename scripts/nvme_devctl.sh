#!/bin/sh
# What an operator types on bare drives, inside the emulated machine: /dev/drive0 has blocks of 512 bytes, /dev/drive1 of 4096.
# Drives 2 and 3 have two namespaces each; drive 2 formats both at once (FNA). The kernel numbers controllers in any order.
node=$(basename "$(readlink /dev/drive0)")
generic=$(echo "$node" | sed s/nvme/ng/)
cluster=0123456789abcdef0123456789abcdef
passed=0
failed=0

# says NAME EXIT_CODE PATTERN COMMAND...: the command ends so and says that.
says() {
    name=$1 code=$2 pattern=$3
    shift 3
    "$@" >/tmp/said 2>&1 </dev/null
    found=$?
    if [ $found -eq "$code" ] && { [ -z "$pattern" ] || grep -q -e "$pattern" /tmp/said; }; then
        passed=$((passed + 1))
        echo "ok    $name"
    else
        failed=$((failed + 1))
        echo "FAIL  $name: exit code $found, wanted $code and '$pattern':"
        cat /tmp/said
    fi
}

to_4096="format /dev/drive0 --cluster $cluster --lanes 2 --nvme-format"
says 'drives are listed as nvme-cli names them' 0 "$node *$generic .*kiseki0 .*512+0 lbaf 0" kiseki-devctl list --all
says 'a bare drive is described' 1 'lbaf 4: ms:0 lbads:12 rp:0x0$' kiseki-devctl inspect /dev/drive0
says 'a healthy drive has a verdict' 0 'drive0: good' kiseki-devctl smart /dev/drive0
says 'the plan has the admin command' 0 'opcode 0x80, nsid 0x1, cdw10 0x00000004' kiseki-devctl plan ${to_4096#format }
says 'nobody to ask: a drive is not told to format' 1 'say --yes' kiseki-devctl $to_4096
says 'a plan changes nothing' 0 '^512$' blockdev --getss /dev/drive0

says 'swap space is made for the next steps' 0 '' mkswap /dev/drive0
says 'and used' 0 '' swapon /dev/drive0
says 'I-D7: a drive in use is refused, whatever is said' 1 'in use.*swap' kiseki-devctl $to_4096 --yes --wipe swap
swapoff /dev/drive0
says 'I-D7: what a drive carries has to be named' 1 'carries swap space' kiseki-devctl $to_4096 --yes
says 'I-D7: nothing was touched' 0 'swap space' kiseki-devctl plan /dev/drive0 --cluster $cluster --lanes 2 --wipe swap
says 'the drive formats to blocks of 4096' 0 'formatted as device' kiseki-devctl $to_4096 --yes --wipe swap
says 'the kernel knows the new blocks' 0 '^4096$' blockdev --getss /dev/drive0
says 'a formatted drive is described' 0 'superblock 3 .*good' kiseki-devctl inspect /dev/drive0
says 'and explains itself' 0 '2 of 2 sound' kiseki-devctl verify /dev/drive0
says 'a drive is formatted once' 0 'formatted so already' kiseki-devctl $to_4096 --yes
says 'I-D7: another cluster has to name the first' 1 "kiseki:$cluster" \
    kiseki-devctl format /dev/drive0 --cluster ${cluster#0}f --lanes 2
says 'the character device is the same drive' 0 'formatted so already' \
    kiseki-devctl format /dev/$generic --cluster $cluster --lanes 2
says 'a drive is found in its slot' 1 'serial kiseki0, PCI address 0000:' kiseki-devctl locate /dev/drive0
says 'a drive is measured without a write' 0 'randread: bs=4.00KiB, iodepth=32' kiseki-devctl bench /dev/drive1 --runtime 500ms

# Siblings.
second=$(basename "$(readlink /dev/drive2n2)")
to_4096="--cluster $cluster --lanes 2 --nvme-format"
says 'swap space is made on a sibling' 0 '' mkswap /dev/drive2n2
says 'and used' 0 '' swapon /dev/drive2n2
says 'I-D7: a format that takes a sibling along is refused while that is in use' 1 \
    "formats all of its namespaces at once, and $second is in use: .*swap" kiseki-devctl format /dev/drive2 $to_4096 --yes
says 'I-D7: whatever is said' 1 "$second is in use: .*swap" \
    kiseki-devctl format /dev/drive2 $to_4096 --yes --wipe "swap,$second:swap"
swapoff /dev/drive2n2
says 'I-D7: what the sibling carries has to be named' 1 "would overwrite swap space on $second.*$second:swap" \
    kiseki-devctl format /dev/drive2 $to_4096 --yes
says 'I-D7: nothing was touched' 0 "swap space" kiseki-devctl plan /dev/drive2n2 --cluster $cluster --lanes 2 --wipe swap
says 'named, both are formatted' 0 'formatted as device' kiseki-devctl format /dev/drive2 $to_4096 --yes --wipe "$second:swap"
says 'the sibling has the new blocks too' 0 '^4096$' blockdev --getss /dev/drive2n2
says 'swap space on a sibling of a drive that formats one at a time' 0 '' mkswap /dev/drive3n2
says 'is used' 0 '' swapon /dev/drive3n2
says 'and is no reason' 0 'formatted as device' kiseki-devctl format /dev/drive3 $to_4096 --yes
says 'it keeps its blocks' 0 '^512$' blockdev --getss /dev/drive3n2
swapoff /dev/drive3n2

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
