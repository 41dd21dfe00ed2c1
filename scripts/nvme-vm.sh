#!/usr/bin/env bash
# An emulated machine with NVMe drives: QEMU, a Debian kernel, a root in memory. It boots in seconds and is good for function,
# faults and crashes, never for speed. Nothing is installed; everything lies below target/nvme-vm.
#
#   nvme-vm.sh setup                    fetches and unpacks QEMU, a kernel and busybox, once, and finds out whether KVM runs them;
#                                       exit code 75: it can't be had here
#   nvme-vm.sh accel                    says what runs the machine: kvm, or tcg (software, several times slower)
#   nvme-vm.sh exec 'commands' FILE...  boots, runs the commands as root with the FILEs (programs with their libraries) in
#                                       /t, and exits with their exit code (125: the guest came to no end)
#
# Environment: DRIVES     "SIZE:BLOCK ..." for example "256M:512 256M:4096": /dev/drive0, /dev/drive1, ... (serial numbers kiseki0, ...);
#                         SIZE may be nbd://HOST:PORT/ of a server that holds the drive, or faulty=SIZE for one that fails
#                         reads of the first block of its fifth MiB and writes of the first block of its ninth, or slow=SIZE for one
#                         that does 1000 commands a second, so that a reset meets some, or null=SIZE for one that keeps
#                         nothing and answers at once. +SIZE:BLOCK adds a namespace (/dev/drive0n2). ;FIELD=VALUE,... is what the drive says of itself where QEMU would say
#                         something else: see emulated_identify.py for the fields
#              NVME       more properties of every drive, for example ",mdts=5"
#              APPEND     more arguments of the kernel (nvme.poll_queues=1)
#              MEM SMP LIMIT_S   MiB (768), processors (1), seconds until it is ended (300)
#              ACCEL      kvm or tcg, whatever was found out
#              QMP        where QEMU listens for its monitor's commands (a UNIX socket)
#              FORWARD    "HOST_PORT:GUEST_PORT ..." of 127.0.0.1 to the guest's 10.0.2.15
#              PIDFILE    where QEMU writes its process id, so that the plug can be pulled
#              KEEP       a directory that keeps drive0.img, ... from one run to the next
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$PWD/target/nvme-vm
unavailable=75
SLOW_IOPS=1000

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
    [ -e "$dir/ready" ] || fetch
    # Its parts are in this file.
    local version
    version=$(cksum <"$0")
    if [ "$(cat "$dir/base.version" 2>/dev/null)" != "$version" ]; then
        base_root
        echo "$version" >"$dir/base.version"
    fi
    [ -e "$dir/accel" ] || find_accel
}

fetch() {
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
    touch "$dir/ready"
}

# A machine may have /dev/kvm and yet not run an ordinary kernel by it (nested in another one, for example): it is tried.
find_accel() {
    echo tcg >"$dir/accel"
    [ -w /dev/kvm ] || return 0
    # In a shell of its own, which `execute` ends.
    if (ACCEL=kvm LIMIT_S=20 execute true) >"$dir/kvm.log" 2>&1; then echo kvm >"$dir/accel"; fi
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
    [ ! -e /dev/$(basename $controller)n2 ] || ln -s $(basename $controller)n2 /dev/drive${serial#kiseki}n2
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

# namespace DRIVE NUMBER SIZE:BLOCK: QEMU's arguments for it, into `args`.
namespace() {
    local drive=$1 number=$2 size=${3%:*} block=${3##*:} name image node
    name=d$drive
    [ "$number" -eq 1 ] || name=d${drive}n$number
    image=$images/drive${name#d}.img
    node="{\"node-name\":\"$name\",\"discard\":\"unmap\",\"driver\":\"file\",\"filename\":\"$image\"}"
    case $size in
    nbd://*) node="{\"node-name\":\"$name\",\"driver\":\"nbd\",\"server\":{\"type\":\"inet\",$(
        sed -E 's|nbd://([^:]*):([0-9]+)/|"host":"\1","port":"\2"|' <<<"$size")}}" ;;
    faulty=*)
        [ -e "$image" ] || truncate -s "${size#faulty=}" "$image"
        node="{\"node-name\":\"$name\",\"driver\":\"blkdebug\",\"image\":{\"driver\":\"file\",\"filename\":\"$image\"},
            \"inject-error\":[
            {\"event\":\"none\",\"iotype\":\"read\",\"errno\":5,\"sector\":8192,\"once\":false},
            {\"event\":\"none\",\"iotype\":\"write\",\"errno\":5,\"sector\":16384,\"once\":false}]}"
        ;;
    slow=*)
        [ -e "$image" ] || truncate -s "${size#slow=}" "$image"
        args+=(-object "throttle-group,id=slow-$name,x-iops-total=$SLOW_IOPS")
        node="{\"node-name\":\"$name\",\"driver\":\"throttle\",\"throttle-group\":\"slow-$name\",\"file\":
            {\"driver\":\"file\",\"filename\":\"$image\"}}"
        ;;
    null=*)
        node="{\"node-name\":\"$name\",\"driver\":\"null-co\",\"size\":$(numfmt --from=iec "${size#null=}"),\"read-zeroes\":true}"
        ;;
    *) [ -e "$image" ] || truncate -s "$size" "$image" ;;
    esac
    # The identifier is what emulated_identify.py knows the namespace by.
    args+=(-blockdev "$node" -device "nvme-ns,drive=$name,bus=c$drive,nsid=$number,logical_block_size=$block,$(
    )physical_block_size=$block,eui64=$((0x6b6973656b690000 + drive * 256 + number))")
}

execute() {
    local commands=$1 work images index=0 drive number part accel args=() fields=() launcher=() file
    shift
    [ -e "$dir/base.cpio" ] || { echo 'nvme-vm.sh setup comes first' >&2; exit 2; }
    accel=${ACCEL:-$(cat "$dir/accel")}
    work=$(mktemp -d "$dir/run.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    mkdir -p "$work/add/t"
    printf '%s\n' "$commands" >"$work/add/t/commands"
    for file in "$@"; do add "$file" "$work/add"; done
    { cat "$dir/base.cpio"; pack "$work/add"; } >"$work/initrd"
    rm -rf "$work/add"
    images=${KEEP:-$work}
    mkdir -p "$images"
    for drive in ${DRIVES:-256M:512}; do
        [ "$drive" = "${drive%;*}" ] || fields+=("$index:${drive#*;}")
        args+=(-device "nvme,serial=kiseki$index,id=c$index${NVME:-}")
        number=0
        for part in $(tr + ' ' <<<"${drive%;*}"); do
            number=$((number + 1))
            namespace $index $number "$part"
        done
        index=$((index + 1))
    done
    if [ -n "${FORWARD:-}" ]; then
        args+=(-netdev "user,id=net$(for pair in $FORWARD; do printf ',hostfwd=tcp:127.0.0.1:%s-:%s' "${pair%:*}" "${pair#*:}"; done)"
            -device virtio-net-pci,netdev=net,romfile=)
    fi
    [ -z "${PIDFILE:-}" ] || args+=(-pidfile "$PIDFILE")
    [ -z "${QMP:-}" ] || args+=(-qmp "unix:$QMP,server=on,wait=off")
    if [ ${#fields[@]} -gt 0 ]; then
        launcher=(python3 scripts/emulated_identify.py "$work/identify.qmp" "${fields[@]}" --)
        args+=(-S -qmp "unix:$work/identify.qmp,server=on,wait=off")
    fi
    case $accel in
    kvm) args+=(-accel kvm -cpu host) ;;
    *) args+=(-accel "tcg,thread=multi" -cpu max) ;;
    esac
    LD_LIBRARY_PATH="$dir/qemu/usr/lib/x86_64-linux-gnu" timeout -k 2 "${LIMIT_S:-300}" "${launcher[@]}" \
        "$dir/qemu/usr/bin/qemu-system-x86_64" -L "$dir/qemu/usr/share/qemu" -L "$dir/qemu/usr/share/seabios" -M q35 -smp "${SMP:-1}" -m "${MEM:-768}" -display none -no-reboot -nodefaults \
        -serial stdio -kernel "$(find "$dir/kernel" -name 'vmlinuz*' | head -n1)" -initrd "$work/initrd" \
        -append "console=ttyS0 quiet panic=-1 ${APPEND:-nvme.poll_queues=1}" "${args[@]}" </dev/null 2>&1 |
        sed -u 's/\x1b\[[0-9;?]*[A-Za-z]//g; s/\x1bc//g; s/\r//g' | tee "$work/console"
    exit "$(sed -n 's/^exit-status=//p' "$work/console" | tail -n1 | grep . || echo 125)"
}

case ${1:-} in
setup) setup ;;
accel) cat "$dir/accel" 2>/dev/null || { echo 'nvme-vm.sh setup comes first' >&2; exit 2; } ;;
exec) shift && execute "$@" ;;
*) sed -n '2,29s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
