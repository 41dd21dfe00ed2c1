"""What goes wrong: each trouble happens, lasts for a while, and is over; `Scene.recover` has the rest come right again."""

import json
import shutil

from history.nodes import FAKETIME, state
from history.stalls import Stalls
from node import check, kiseki, listed, until

# How long a trouble lasts.
LAST_SECONDS = (2.0, 5.0)
# Of the clients of other nodes none may wait longer for an answer while a node stops cleanly and starts again.
NOTICED_SECONDS = 1.5
# A synced write beside the nodes that takes this long is a stall: if there was one while clients waited too long, the restart is judged once
# more, twice at most.
STALLED_SECONDS, SYNCS_OF_REQUEST = 0.2, 4
# How long synced writes are watched before a node is stopped; longer when it is done once more.
QUIET_SECONDS, QUIET_AGAIN_SECONDS = 1.0, 5.0


def leads(member):
    reports = state(member).get("core_reports", {})
    return sum(core["values"].get("raft_groups_led", 0) for core in reports.values())


def leader_and_followers(scene):
    """The node that leads most shards, and the others."""
    order = sorted(scene.cluster.up(), key=leads, reverse=True)
    return order[0], order[1:]


def kill_leader(scene):
    victim, _ = leader_and_followers(scene)
    victim.kill()
    scene.serve_meanwhile(scene.cluster.up(), "its leader is dead")
    scene.last()
    return f"node {victim.number}, which led most"


def kill_follower(scene):
    _, followers = leader_and_followers(scene)
    victim = scene.rng.choice(followers)
    victim.kill()
    scene.last()
    return f"node {victim.number}"


def kill_all(scene):
    """Power fails everywhere; nodes come back in any order, one of them with a clock that counts from elsewhere."""
    members = scene.shuffled()
    for member in members:
        member.kill()
    scene.pause(0.5)
    if scene.cluster.net:
        members[0].boottime = scene.rng.randrange(1, 1_000_000)
    for member in scene.shuffled():
        member.launch()
        scene.pause(scene.rng.random())
    clock = members[0].boottime
    return f"all; node {members[0].number} counts its time from {clock} s earlier" if clock else "all"


def cut_minority(scene):
    """One node and the others do not hear each other; clients hear all."""
    victim = scene.rng.choice(scene.cluster.members)
    for other in scene.cluster.members:
        if other is not victim:
            scene.cluster.net.cut(victim.number, other.number)
            scene.cluster.net.cut(other.number, victim.number)
    scene.cluster.net.apply()
    others = [member for member in scene.cluster.members if member is not victim]
    scene.serve_meanwhile(others, f"node {victim.number} is cut off")
    scene.last()
    return f"node {victim.number}"


def cut_majority(scene):
    """Nobody hears anybody: there is no majority anywhere, and nothing may be acknowledged."""
    for one in scene.cluster.members:
        for other in scene.cluster.members:
            if one is not other:
                scene.cluster.net.cut(one.number, other.number)
    scene.cluster.net.apply()
    scene.last()
    return "all from all"


def cut_one_way(scene):
    one, other = scene.shuffled()[:2]
    scene.cluster.net.cut(one.number, other.number)
    scene.cluster.net.apply()
    scene.last()
    return f"what node {one.number} sends to node {other.number}"


def cut_leader_deaf(scene):
    """The leader is heard and hears nobody."""
    leader, followers = leader_and_followers(scene)
    for other in followers:
        scene.cluster.net.cut(other.number, leader.number)
    scene.cluster.net.apply()
    scene.serve_meanwhile(followers, f"node {leader.number}, which led most, is deaf")
    scene.last()
    return f"node {leader.number}"


def bad_link(scene):
    victim = scene.rng.choice(scene.cluster.members)
    percent, kilobits = scene.rng.choice([5, 20, 40]), scene.rng.choice([1_000, 8_000, 50_000])
    scene.cluster.net.lose(victim.number, percent)
    scene.cluster.net.slow_down(victim.number, kilobits)
    scene.cluster.net.apply()
    scene.last()
    return f"node {victim.number}: {percent} % of the packets lost, {kilobits} kbit/s"


def full_disk(scene):
    """Nothing more can be written to the files of a node: its devices, its journals, its tables. When there is room again, an operator
    starts it anew."""
    victim = scene.rng.choice(scene.cluster.members)
    victim.fill()
    scene.last()
    others = [member for member in scene.cluster.members if member is not victim]
    scene.serve_meanwhile(others, f"the disk of node {victim.number} is full")
    scene.last()
    victim.empty()
    if victim.is_up():
        victim.kill()
    return f"node {victim.number}"


def clock_jumps(scene):
    """The wall clock of a node is set; less than what signatures allow, so that it is no reason to refuse anybody."""
    victim, seconds = scene.rng.choice(scene.cluster.members), scene.rng.choice([-800, -120, 120, 800])
    victim.jump(seconds)
    scene.last()
    victim.jump(-seconds // 2)
    scene.last()
    victim.jump(0)
    return f"node {victim.number} by {seconds} s and back"


def device_lost(scene):
    """A node dies and comes back without one of its devices; repair goes on without it. Later the device is back."""
    victim = scene.rng.choice(scene.cluster.members)
    victim.kill()
    device = scene.rng.choice(victim.devices())
    away = victim.place / "away"
    shutil.move(device, away)
    scene.last()
    victim.start()
    check(any(row["state"] != "healthy" for row in state(victim)["devices"]), f"node {victim.number} says that a device is missing")
    scene.serve_again("a device is lost")
    scene.cluster.await_whole()
    check(True, "what it held is rebuilt on others")
    victim.kill()
    shutil.move(away, device)
    return f"{device.name} of node {victim.number}"


def allowed_seconds(quiet, stalled):
    """How long a client may wait, from the longest synced write before a node was stopped and from the longest meanwhile. What both show is the
    machine's, and each sync that a request waits for, one after the other, may take that long; what only the stop brings is the server's."""
    machine = min(quiet, stalled)
    return NOTICED_SECONDS + (SYNCS_OF_REQUEST * machine if machine >= STALLED_SECONDS else 0.0)


def check_allowance(check):
    for quiet, stalled, allowed, what in [
        (0.02, 0.03, NOTICED_SECONDS, "no stall, no allowance"),
        (0.19, 0.19, NOTICED_SECONDS, "none below what is called a stall"),
        (0.02, 2.0, NOTICED_SECONDS, "none for a server that floods the disk when it stops"),
        (2.0, 0.02, NOTICED_SECONDS, "none for a stall that was over before"),
        (0.5, 2.0, NOTICED_SECONDS + 2.0, "what the machine did before as well is allowed"),
    ]:
        check(allowed_seconds(quiet, stalled) == allowed, f"slow restarts: {what}")


def rolling_restart(scene):
    """Each node is stopped cleanly and started again. Clients of the others must not notice."""
    for member in scene.shuffled():
        others = [other for other in scene.cluster.members if other is not member]
        seen = restart_unnoticed(scene, member, others, QUIET_SECONDS)
        for _ in range(2):
            failures, slowest, quiet, stalled = seen
            if (not failures and slowest < NOTICED_SECONDS) or stalled < STALLED_SECONDS:
                break
            print(f"     a synced write took {stalled:.2f} s, {quiet:.2f} s before, a client waited {slowest:.2f} s: once more", flush=True)
            # What a node catches up with after its start is no quiet.
            scene.cluster.await_whole()
            seen = restart_unnoticed(scene, member, others, QUIET_AGAIN_SECONDS)
        failures, slowest, quiet, stalled = seen
        allowed = allowed_seconds(quiet, stalled)
        check(not failures, f"clients of the others see no failure {failures or ''}")
        check(slowest < allowed, f"and wait {slowest:.2f} s at most, {allowed:.2f} s are allowed (a synced write {stalled:.2f} s, {quiet:.2f} s before)")
    return "each node"


def restart_unnoticed(scene, member, others, quiet_seconds):
    """What clients of the others saw fail, how long they waited at most, and the longest synced write before the stop and from then on."""
    clients = scene.clients
    clients.nodes = others
    clients.forget()
    with Stalls(scene.cluster.work) as stalls:
        scene.pause(quiet_seconds)
        quiet = stalls.take()
        clients.forget_waits()
        code = member.stop()
        check(code == 0, f"node {member.number} stops cleanly")
        scene.pause(1.0)
    stalled = stalls.take()
    failures = {other.number: clients.failures[other.number] for other in others if clients.failures[other.number]}
    slowest = max((clients.slowest[other.number] for other in others), default=0.0)
    member.start()
    clients.nodes = list(scene.cluster.members)
    return failures, slowest, quiet, stalled


def node_replaced(scene):
    """A node is lost for good, and another one takes its place."""
    victim = scene.rng.choice(scene.cluster.members[1:])  # the first has the authority
    victim.kill()
    scene.cluster.members.remove(victim)
    scene.clients.nodes = list(scene.cluster.members)
    scene.last()
    first = scene.cluster.members[0]
    until("the lost node is let go", lambda: kiseki(first, "node", "remove", victim.number, "--lost")[0] == 0)
    member = scene.cluster.join()
    scene.clients.nodes = list(scene.cluster.members)
    check(listed(first)[victim.number]["state"] == "removed", f"node {victim.number} is gone, node {member.number} is there")
    scene.cluster.gone.append(victim)
    # Until its votes are with the new one, a further death may be one too many.
    scene.cluster.await_whole()
    return f"node {victim.number} by node {member.number}"


def split_shard(scene):
    """Keys move to another shard while clients use them, and the leader of the shard that gives them away may die meanwhile."""
    members = scene.cluster.members
    began = until("a shard knows where to split", lambda: begin_split(members[0]))
    parent, child = began["shard"], began["child"]
    victim = None
    if scene.rng.random() < 0.5:
        scene.pause(scene.rng.random() * 2)
        leader = shards(members[0])[parent]["leader"]
        victim = next((member for member in members if member.number == leader), members[-1])
        victim.kill()
        scene.serve_meanwhile(scene.cluster.up(), "a shard is split and its leader is dead")
        victim.launch()
        victim.await_ready()
    until("the keys have moved", lambda: shards(scene.cluster.up()[0])[child]["split_of"] is None, 120)
    return f"shard {parent} gives keys to {child}" + (f", node {victim.number}, its leader, dies meanwhile" if victim else "")


def shards(member):
    code, out, error = kiseki(member, "shard", "list", "--json")
    if code != 0:
        raise RuntimeError(f"shard list: {error}")
    return {row["shard"]: row for row in json.loads(out)}


def begin_split(member):
    """The shard that has most to do, where half of it lies on either side."""
    busiest = max(shards(member).values(), key=lambda row: row["writes_per_minute"])
    code, out, _ = kiseki(member, "shard", "split", busiest["shard"], "--json")
    return json.loads(out) if code == 0 else None


# In the order of the short form. Those of the second list need addresses and file systems of their own.
ANYWHERE = [kill_leader, kill_follower, kill_all, rolling_restart, device_lost, node_replaced, split_shard]
SEPARATED = [cut_minority, cut_majority, cut_one_way, cut_leader_deaf, bad_link, full_disk]
SHORT = [rolling_restart, kill_leader, cut_minority, split_shard, cut_one_way, kill_all, bad_link]


def possible(net):
    """Troubles that this machine can make, and why not the others."""
    troubles, left_out = list(ANYWHERE), []
    if net:
        troubles += SEPARATED
    else:
        left_out.append("partitions, bad links and full disks: they need network namespaces")
    if FAKETIME.exists():
        troubles.append(clock_jumps)
    else:
        left_out.append("clocks that jump: libfaketime is not installed")
    return troubles, left_out

