@0xf0f9fdde44303262;
# Messages between replicas of shards, version 2. What they mean, their limits and how they may grow is told in
# docs/formats/raft-messages.md. Fields are never renumbered or reused; a reader ignores those that it does not know.

struct LogId {
  term  @0 :UInt64;
  index @1 :UInt64;
}

struct Vote {
  term      @0 :UInt64;
  voter     @1 :UInt64;  # whom the vote is for
  committed @2 :Bool;    # granted by a majority: a leader's
}

struct Membership {
  configs @0 :List(List(UInt64));  # two while they change
  members @1 :List(UInt64);        # voters and learners
}

struct Entry {
  term  @0 :UInt64;
  index @1 :UInt64;
  union {
    blank      @2 :Void;
    command    @3 :UInt32;      # its length; the bytes of all commands follow one another beside the message
    membership @4 :Membership;
  }
}

struct Append {
  vote     @0 :Vote;
  previous @1 :LogId;  # absent: nothing is in front
  commit   @2 :LogId;
  entries  @3 :List(Entry);
}

struct Election {
  vote       @0 :Vote;
  last       @1 :LogId;
  isTransfer @2 :Bool;  # the leader itself asked for it
}

struct Transfer {
  from @0 :Vote;
  to   @1 :UInt64;
  last @2 :LogId;
}

struct SnapshotPiece {
  vote   @0 :Vote;
  stream @1 :UInt64;  # one snapshot on its way
  number @2 :UInt32;  # pieces are numbered from 0
  union {
    frame @3 :UInt32;  # its length; the bytes stand beside the message, in order with those of commands
    end   @4 :Void;
  }
}

struct Rest {
  vote @0 :Vote;
  last @1 :LogId;  # all that the leader has, committed
}

struct Call {
  shard @0 :UInt64;
  to    @1 :UInt64;  # the voter
  union {
    append   @2 :Append;
    vote     @3 :Election;
    preVote  @4 :Election;
    transfer @5 :Transfer;
    snapshot @6 :SnapshotPiece;
    rest     @7 :Rest;           # since version 2
  }
}

struct Calls {
  version        @0 :UInt16;  # what the sender speaks
  oldest         @1 :UInt16;  # the oldest version whose reader understands this message
  answerWithinMs @2 :UInt32;  # what is not answered by then is answered as `late`
  calls          @3 :List(Call);
}

struct AppendedUpTo {
  last @0 :LogId;  # absent: nothing
}

struct ElectionAnswer {
  vote    @0 :Vote;
  granted @1 :Bool;
  last    @2 :LogId;
}

struct Answer {
  union {
    appended      @0 :Void;
    appendedUpTo  @1 :AppendedUpTo;  # only a part
    conflict      @2 :Void;
    higherVote    @3 :Vote;
    election      @4 :ElectionAnswer;
    transferTaken @5 :Void;
    pieceTaken    @6 :Void;
    installed     @7 :Vote;
    noReplica     @8 :Void;   # no replica here votes under that id
    late          @9 :Void;   # no answer in time; it may still be acted upon
    refused       @10 :Text;
    rests         @11 :Bool;  # since version 2: whether the replica rests as well
  }
}

struct Answers {
  version @0 :UInt16;
  oldest  @1 :UInt16;
  answers @2 :List(Answer);  # as many as calls, in their order
}
