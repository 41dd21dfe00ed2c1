#!/usr/bin/env bash
# An emulated machine with NVMe drives: QEMU in software, a Debian kernel, a root in memory. It boots in seconds and is good
# for function, faults and crashes, never for speed. Nothing is installed; everything lies below target/nvme-vm.
#
#   nvme-vm.sh setup                    fetches and unpacks QEMU, a kernel and busybox, once; exit code 75: it can't be had here
#   nvme-vm.sh exec 'commands' FILE...  boots, runs the commands as root with the FILEs (programs with their libraries) in
#                                       /t, and exits with their exit code (125: the guest came to no end)
#
# Environment: DRIVES     "SIZE:BLOCK ..." for example "256M:512 256M:4096": /dev/drive0, /dev/drive1, ... (serial numbers kiseki0, ...);
#                         SIZE may be nbd://HOST:PORT/ of a server that holds the drive, or faulty=SIZE for one that fails
#                         reads of the first block of its fifth MiB and writes of the first block of its ninth, or null=SIZE for
#                         one that keeps nothing and answers at once
#              NVME       more properties of every drive, for example ",mdts=5"
#              APPEND     more arguments of the kernel (nvme.poll_queues=1)
#              MEM SMP LIMIT_S   MiB (768), processors (1), seconds until it is ended (300)
#              FORWARD    "HOST_PORT:GUEST_PORT ..." of 127.0.0.1 to the guest's 10.0.2.15
#              PIDFILE    where QEMU writes its process id, so that the plug can be pulled
#              KEEP       a directory that keeps drive0.img, ... from one run to the next
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$PWD/target/nvme-vm
unavailable=75

fail_setup() {
    echo "no emulated machine: $1" >&2
    exit $unavailable
}

# An apt of our own, with the mirror of this machine and, on Debian 12, its backports: half of the boots of Debian 12's own
# QEMU crash.
private_apt() {
    local mirror codename suites suite keys=/usr/share/keyrings/debian-archive-keyring.gpg
    command -v apt-get >/dev/null || fail_setup 'this is no Debian'
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } |
        grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n1 | tr -d ' ')
    [ -n "$mirror" ] || fail_setup 'apt names no Debian mirror'
    suites=$codename
    [ "$codename" != bookworm ] || suites="bookworm bookworm-backports"
    mkdir -p "$dir"/apt/lists/partial "$dir"/apt/cache/archives/partial "$dir"/apt/etc "$dir"/packages
    for suite in $suites; do echo "deb [signed-by=$keys] $mirror $suite main"; done >"$dir/apt/etc/sources.list"
    cat >"$dir/apt/apt.conf" <<CONF
Dir::Etc::SourceList "$dir/apt/etc/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "$dir/apt/lists";
Dir::Cache "$dir/apt/cache";
Acquire::Languages "none";
APT::Sandbox::User "root";
CONF
    export APT_CONFIG=$dir/apt/apt.conf
    apt-get update -qq 2>"$dir/apt.log" || fail_setup "the mirror $mirror does not answer ($dir/apt.log)"
}

# newest PACKAGE...: the newest version of each, as apt-get names it.
newest() {
    local package version
    for package in "$@"; do
        version=$(apt-cache madison "$package" | awk 'NR == 1 {print $3}')
        [ -z "$version" ] || echo "$package=$version"
    done
}

setup() {
    [ ! -e "$dir/ready" ] || return 0
    local kernel package
    private_apt
    kernel=$({ apt-cache show "$(newest linux-image-cloud-amd64)" 2>/dev/null || true; } | sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p' | head -n1)
    [ -n "$kernel" ] || fail_setup 'the mirror has no kernel for it'
    # The last four are what QEMU is linked to and few machines have.
    # shellcheck disable=SC2046
    (cd "$dir/packages" && apt-get download -qq $(newest "$kernel" busybox-static qemu-system-x86 qemu-system-common \
        qemu-system-data qemu-utils qemu-block-extra seabios libcapstone4 libcapstone5 libfdt1 libslirp0 libvdeplug2)) \
        2>"$dir/apt.log" || fail_setup "downloading failed ($dir/apt.log)"
    for package in "$dir"/packages/*.deb; do
        case $(basename "$package") in
        linux-image*) dpkg -x "$package" "$dir/kernel" ;;
        busybox*) dpkg -x "$package" "$dir/busybox" ;;
        *) dpkg -x "$package" "$dir/qemu" ;;
        esac
    done
    qemu --version >/dev/null 2>"$dir/qemu.log" || fail_setup "QEMU does not run ($(head -n1 "$dir/qemu.log"))"
    base_root
    touch "$dir/ready"
}

qemu() {
    LD_LIBRARY_PATH="$dir/qemu/usr/lib/x86_64-linux-gnu" "$dir/qemu/usr/bin/qemu-system-x86_64" \
        -L "$dir/qemu/usr/share/qemu" -L "$dir/qemu/usr/share/seabios" "$@"
}

busybox() { "$(find "$dir/busybox" -path '*bin/busybox' -type f | head -n1)" "$@"; }

# pack DIRECTORY: as the kernel wants its first root.
pack() { (cd "$1" && find . | busybox cpio -o -H newc 2>/dev/null); }

base_root() {
    local root=$dir/root command module file
    rm -rf "$root"
    mkdir -p "$root"/{bin,proc,sys,dev,tmp,t,mnt,mods}
    cp "$(find "$dir/busybox" -path '*bin/busybox' -type f | head -n1)" "$root/bin/busybox"
    for command in $(busybox --list); do [ -e "$root/bin/$command" ] || ln -s busybox "$root/bin/$command"; done
    # In the order in which they are loaded, where the kernel does not have them built in.
    for module in crc16 crc32c_generic libcrc32c mbcache jbd2 ext4 failover net_failover virtio_net; do
        file=$(find "$dir/kernel" -name "$module.ko*" | head -n1)
        [ -z "$file" ] || echo "$module" >>"$root/mods/order"
        case $file in
        *.xz) xz -dc "$file" >"$root/mods/$module.ko" ;;
        ?*) cp "$file" "$root/mods/" ;;
        esac
    done
    cat >"$root/init" <<'INIT'
#!/bin/sh
export PATH=/t:/bin HOME=/tmp
mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys; mount -t tmpfs t /tmp
ip link set lo up
ulimit -l unlimited
# The kernel numbers controllers as they answer; /dev/drive0, /dev/drive1, ... are in the order of DRIVES.
for controller in /sys/class/nvme/nvme*; do
    serial=$(echo $(cat $controller/serial))
    ln -s $(basename $controller)n1 /dev/drive${serial#kiseki}
done
echo "guest $(uname -r) up after $(cut -d' ' -f1 /proc/uptime) s"
sh /t/commands; echo "exit-status=$?"
poweroff -f
INIT
    chmod +x "$root/init"
    pack "$root" >"$dir/base.cpio"
    rm -rf "$root"
}

# add FILE ROOT: a program into /t of ROOT, without what debuggers read, and its libraries to where it looks for them.
add() {
    cp "$1" "$2/t/"
    strip --strip-debug "$2/t/$(basename "$1")" 2>/dev/null || true
    { ldd "$1" 2>/dev/null || true; } | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$2$(dirname "$library")"
        [ -e "$2$library" ] || cp -L "$library" "$2$library"
    done
}

execute() {
    local commands=$1 work drives index=0 drive size block image node args=() file
    shift
    [ -e "$dir/ready" ] || { echo 'nvme-vm.sh setup comes first' >&2; exit 2; }
    work=$(mktemp -d "$dir/run.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    mkdir -p "$work/add/t"
    printf '%s\n' "$commands" >"$work/add/t/commands"
    for file in "$@"; do add "$file" "$work/add"; done
    { cat "$dir/base.cpio"; pack "$work/add"; } >"$work/initrd"
    rm -rf "$work/add"
    drives=${KEEP:-$work}
    mkdir -p "$drives"
    for drive in ${DRIVES:-256M:512}; do
        size=${drive%:*} block=${drive##*:} image=$drives/drive$index.img
        node="{\"node-name\":\"d$index\",\"discard\":\"unmap\",\"driver\":\"file\",\"filename\":\"$image\"}"
        case $size in
        nbd://*) node="{\"node-name\":\"d$index\",\"driver\":\"nbd\",\"server\":{\"type\":\"inet\",$(
            sed -E 's|nbd://([^:]*):([0-9]+)/|"host":"\1","port":"\2"|' <<<"$size")}}" ;;
        faulty=*)
            [ -e "$image" ] || truncate -s "${size#faulty=}" "$image"
            node="{\"node-name\":\"d$index\",\"driver\":\"blkdebug\",\"image\":{\"driver\":\"file\",\"filename\":\"$image\"},
                \"inject-error\":[
                {\"event\":\"none\",\"iotype\":\"read\",\"errno\":5,\"sector\":8192,\"once\":false},
                {\"event\":\"none\",\"iotype\":\"write\",\"errno\":5,\"sector\":16384,\"once\":false}]}"
            ;;
        null=*) node="{\"node-name\":\"d$index\",\"driver\":\"null-co\",\"size\":$(numfmt --from=iec "${size#null=}"),\"read-zeroes\":true}" ;;
        *) [ -e "$image" ] || truncate -s "$size" "$image" ;;
        esac
        args+=(-blockdev "$node" -device "nvme,serial=kiseki$index,id=c$index${NVME:-}"
            -device "nvme-ns,drive=d$index,bus=c$index,nsid=1,logical_block_size=$block,physical_block_size=$block")
        index=$((index + 1))
    done
    if [ -n "${FORWARD:-}" ]; then
        args+=(-netdev "user,id=net$(for pair in $FORWARD; do printf ',hostfwd=tcp:127.0.0.1:%s-:%s' "${pair%:*}" "${pair#*:}"; done)"
            -device virtio-net-pci,netdev=net,romfile=)
    fi
    [ -z "${PIDFILE:-}" ] || args+=(-pidfile "$PIDFILE")
    LD_LIBRARY_PATH="$dir/qemu/usr/lib/x86_64-linux-gnu" timeout -k 2 "${LIMIT_S:-300}" \
        "$dir/qemu/usr/bin/qemu-system-x86_64" -L "$dir/qemu/usr/share/qemu" -L "$dir/qemu/usr/share/seabios" \
        -accel tcg,thread=multi -M q35 -cpu max -smp "${SMP:-1}" -m "${MEM:-768}" -display none -no-reboot -nodefaults \
        -serial stdio -kernel "$(find "$dir/kernel" -name 'vmlinuz*' | head -n1)" -initrd "$work/initrd" \
        -append "console=ttyS0 quiet panic=-1 ${APPEND:-nvme.poll_queues=1}" "${args[@]}" </dev/null 2>&1 |
        sed -u 's/\x1b\[[0-9;?]*[A-Za-z]//g; s/\x1bc//g; s/\r//g' | tee "$work/console"
    exit "$(sed -n 's/^exit-status=//p' "$work/console" | tail -n1 | grep . || echo 125)"
}

case ${1:-} in
setup) setup ;;
exec) shift && execute "$@" ;;
*) sed -n '2,20s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
