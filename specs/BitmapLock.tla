------------------------------ MODULE BitmapLock ----------------------------
(***************************************************************************)
(* The algorithm that loses writes.  A lock on the map of states, taken    *)
(* for one access to it; a second lock for those who read a block, change  *)
(* a part of it and write it back; and nothing else.  Copy-on-cache holds  *)
(* the first lock all the time; copy-on-read takes none to set a state,    *)
(* though the states of several blocks are in one byte.                    *)
(*                                                                         *)
(* The review of this algorithm argued, in prose, that each pair of        *)
(* requests is safe.  No refinement mapping is given, since none exists:   *)
(* SomeOrderExplains is violated, which speaks of no mapping.              *)
(*                                                                         *)
(* Requests go block by block, in ascending order.                         *)
(*                                                                         *)
(* Twin: specs/bitmap_lock.py.  Source: the patch "cow: Use more           *)
(* fine-grained locking" for nbdkit (February 2021) and its review;        *)
(* copy-on-read as nbdkit's filter has had it since.                       *)
(***************************************************************************)
EXTENDS Disk

CONSTANTS
    Torn,        \* whether a block moves to and from the store a sector at a time
    CopyOnRead,  \* whether a read keeps what it fetched from the base
    CopyOnCache  \* whether a cache request does; it finds nothing to do otherwise

VARIABLES
    state,   \* [Block -> State]: the bitmap
    store,   \* [Address -> Value]
    bitmap,  \* Client or None: who holds the bitmap's lock longer than a step
    rmw,     \* Client or None: who holds the lock of those who read, modify and write
    pc,      \* [Client -> where it is; the values are in Where below]
    req,     \* [Client -> request]
    left,    \* [Client -> SUBSET Block]: what it has not finished; it is at the least of them
    buffer,  \* [Client -> [Address -> Value or None]]: what it has read of its block
    moved,   \* [Client -> SUBSET Address]: what it has stored of its block
    byte,    \* [Client -> [Block -> State or None]]: the byte of the map it is about to write back
    reply,   \* [Client -> [Address -> Value or None]]: what a read is going to be told
    before,  \* [Client -> SUBSET Client]: who had a reply when it asked; for the proof only
    start    \* [Address -> Value]: what the device held at first; for the proof only

vars == <<state, store, bitmap, rmw, pc, req, left, buffer, moved, byte, reply, before, start>>

Where == {"idle", "locking rmw", "locking bitmap", "looking", "fetching", "copying", "keeping", "loading byte",
          "storing byte", "delivering", "storing", "marking", "unlocking", "answering", "done"}

Nothing == [a \in Address |-> None]
NoByte == [b \in Block |-> None]

-----------------------------------------------------------------------------
(* Where a client goes, given its request and the blocks that it has not finished. *)
Entry(r, blocks) ==
    IF blocks = {} \/ (r.kind = "cache" /\ ~CopyOnCache) THEN "answering"
    ELSE CASE r.kind = "read" -> "looking"
           [] r.kind = "cache" -> "locking bitmap"
           [] Changes(r) /\ ~CoversAll(r, Least(blocks)) -> "locking rmw"
           [] r.kind = "trim" /\ CoversAll(r, Least(blocks)) -> "marking"
           [] OTHER -> "storing"

At(c) == Least(left[c])
WholeBlock(c) == SectorsOf(At(c))
AfterReading(c) == IF req[c].kind = "read" THEN "delivering" ELSE "storing"

(* The block is finished, the locks given back. *)
GoOn(c) == /\ left' = [left EXCEPT ![c] = @ \ {At(c)}]
           /\ pc' = [pc EXCEPT ![c] = Entry(req[c], left[c] \ {At(c)})]
           /\ buffer' = [buffer EXCEPT ![c] = Nothing]
           /\ moved' = [moved EXCEPT ![c] = {}]

-----------------------------------------------------------------------------
Init == /\ state \in [Block -> Initially]
        /\ store = [a \in Address |-> Old]
        /\ bitmap = None
        /\ rmw = None
        /\ pc = [c \in Client |-> "idle"]
        /\ req = [c \in Client |-> NoRequest]
        /\ left = [c \in Client |-> {}]
        /\ buffer = [c \in Client |-> Nothing]
        /\ moved = [c \in Client |-> {}]
        /\ byte = [c \in Client |-> NoByte]
        /\ reply = [c \in Client |-> Nothing]
        /\ before = [c \in Client |-> {}]
        /\ start = [a \in Address |-> Shown(state[BlockOf(a)], Old)]

Invoke(c, r) == /\ pc[c] = "idle"
                /\ pc' = [pc EXCEPT ![c] = Entry(r, BlocksOf(r))]
                /\ req' = [req EXCEPT ![c] = r]
                /\ left' = [left EXCEPT ![c] = BlocksOf(r)]
                /\ before' = [before EXCEPT ![c] = {d \in Client : pc[d] = "done"}]
                /\ UNCHANGED <<state, store, bitmap, rmw, buffer, moved, byte, reply, start>>

LockRmw(c) == /\ pc[c] = "locking rmw"
              /\ rmw = None
              /\ rmw' = c
              /\ pc' = [pc EXCEPT ![c] = "looking"]
              /\ UNCHANGED <<state, store, bitmap, req, left, buffer, moved, byte, reply, before, start>>

(* The bitmap's lock is held for this step only; what is seen may be out of date in the next. *)
Look(c) == /\ pc[c] = "looking"
           /\ bitmap = None
           /\ LET seen == state[At(c)] IN
                  /\ buffer' = [buffer EXCEPT ![c] = [a \in Address |->
                         IF a \in WholeBlock(c) /\ seen = Trimmed THEN Zero ELSE None]]
                  /\ pc' = [pc EXCEPT ![c] = CASE seen = NotAllocated -> "fetching"
                                               [] seen = Allocated    -> "copying"
                                               [] seen = Trimmed      -> AfterReading(c)]
           /\ UNCHANGED <<state, store, bitmap, rmw, req, left, moved, byte, reply, before, start>>

(* Copy-on-cache keeps the bitmap's lock until it has stored what it read. *)
LockBitmap(c) == /\ pc[c] = "locking bitmap"
                 /\ bitmap = None
                 /\ bitmap' = c
                 /\ pc' = [pc EXCEPT ![c] = IF state[At(c)] = NotAllocated THEN "fetching" ELSE "unlocking"]
                 /\ UNCHANGED <<state, store, rmw, req, left, buffer, moved, byte, reply, before, start>>

Fetch(c) == /\ pc[c] = "fetching"
            /\ buffer' = [buffer EXCEPT ![c] = [a \in Address |-> IF a \in WholeBlock(c) THEN Base ELSE None]]
            /\ pc' = [pc EXCEPT ![c] =
                   IF req[c].kind = "cache" \/ CopyOnRead THEN "keeping" ELSE AfterReading(c)]
            /\ UNCHANGED <<state, store, bitmap, rmw, req, left, moved, byte, reply, before, start>>

(* The overlay's bytes, with no lock. *)
Copy(c) == LET missing == {a \in WholeBlock(c) : buffer[c][a] = None}
               part == NextPart(Torn, missing) IN
           /\ pc[c] = "copying"
           /\ buffer' = [buffer EXCEPT ![c] = [a \in Address |-> IF a \in part THEN store[a] ELSE @[a]]]
           /\ pc' = [pc EXCEPT ![c] = IF part = missing THEN AfterReading(c) ELSE @]
           /\ UNCHANGED <<state, store, bitmap, rmw, req, left, moved, byte, reply, before, start>>

(* The base's content is put where others may have put theirs meanwhile: nobody looks at the state again. *)
Keep(c) == LET part == NextPart(Torn, WholeBlock(c) \ moved[c]) IN
           /\ pc[c] = "keeping"
           /\ store' = [a \in Address |-> IF a \in part THEN Base ELSE store[a]]
           /\ moved' = [moved EXCEPT ![c] = IF @ \cup part = WholeBlock(c) THEN {} ELSE @ \cup part]
           /\ pc' = [pc EXCEPT ![c] = IF moved[c] \cup part # WholeBlock(c) THEN @
                                      ELSE IF req[c].kind = "cache" THEN "marking"
                                      ELSE "loading byte"]
           /\ UNCHANGED <<state, bitmap, rmw, req, left, buffer, byte, reply, before, start>>

(* Copy-on-read sets the state without the lock.  All blocks here have theirs in one byte. *)
LoadByte(c) == /\ pc[c] = "loading byte"
               /\ byte' = [byte EXCEPT ![c] = state]
               /\ pc' = [pc EXCEPT ![c] = "storing byte"]
               /\ UNCHANGED <<state, store, bitmap, rmw, req, left, buffer, moved, reply, before, start>>

StoreByte(c) == /\ pc[c] = "storing byte"
                /\ state' = [byte[c] EXCEPT ![At(c)] = Allocated]
                /\ byte' = [byte EXCEPT ![c] = NoByte]
                /\ pc' = [pc EXCEPT ![c] = AfterReading(c)]
                /\ UNCHANGED <<store, bitmap, rmw, req, left, buffer, moved, reply, before, start>>

Deliver(c) == /\ pc[c] = "delivering"
              /\ reply' = [reply EXCEPT ![c] = [a \in Address |->
                     IF a \in InBlock(req[c], At(c)) THEN buffer[c][a] ELSE @[a]]]
              /\ GoOn(c)
              /\ UNCHANGED <<state, store, bitmap, rmw, req, byte, before, start>>

(* The whole block, whatever part of it the request changes. *)
Store(c) == LET part == NextPart(Torn, WholeBlock(c) \ moved[c]) IN
            /\ pc[c] = "storing"
            /\ store' = [a \in Address |-> IF a \notin part THEN store[a]
                                           ELSE IF a \in req[c].at THEN NewValue(c, req[c])
                                           ELSE buffer[c][a]]
            /\ moved' = [moved EXCEPT ![c] = @ \cup part]
            /\ pc' = [pc EXCEPT ![c] = IF moved[c] \cup part = WholeBlock(c) THEN "marking" ELSE @]
            /\ UNCHANGED <<state, bitmap, rmw, req, left, buffer, byte, reply, before, start>>

Mark(c) == /\ pc[c] = "marking"
           /\ bitmap \in {None, c}
           /\ state' = [state EXCEPT ![At(c)] =
                  IF req[c].kind = "trim" /\ CoversAll(req[c], At(c)) THEN Trimmed ELSE Allocated]
           /\ IF c \in {bitmap, rmw}
              THEN pc' = [pc EXCEPT ![c] = "unlocking"] /\ UNCHANGED <<left, buffer, moved>>
              ELSE GoOn(c)
           /\ UNCHANGED <<store, bitmap, rmw, req, byte, reply, before, start>>

Unlock(c) == /\ pc[c] = "unlocking"
             /\ bitmap' = IF bitmap = c THEN None ELSE bitmap
             /\ rmw' = IF rmw = c THEN None ELSE rmw
             /\ GoOn(c)
             /\ UNCHANGED <<state, store, req, byte, reply, before, start>>

Respond(c) == /\ pc[c] = "answering"
              /\ pc' = [pc EXCEPT ![c] = "done"]
              /\ left' = [left EXCEPT ![c] = {}]
              /\ UNCHANGED <<state, store, bitmap, rmw, req, buffer, moved, byte, reply, before, start>>

AllDone == \A c \in Client : pc[c] = "done"

Finished == AllDone /\ UNCHANGED vars  \* so that the end is no deadlock, and every other is

Next == \/ \E c \in Client :
               \/ \E r \in Requests : Invoke(c, r)
               \/ LockRmw(c) \/ LockBitmap(c) \/ Look(c) \/ Fetch(c) \/ Copy(c) \/ Keep(c) \/ LoadByte(c)
               \/ StoreByte(c) \/ Deliver(c) \/ Store(c) \/ Mark(c) \/ Unlock(c) \/ Respond(c)
        \/ Finished

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
Contents == [a \in Address |-> Shown(state[BlockOf(a)], store[a])]

(* Always: variables have the shape they were declared with. *)
TypeOK == /\ state \in [Block -> State]
          /\ store \in [Address -> Value]
          /\ bitmap \in Client \cup {None}
          /\ rmw \in Client \cup {None}
          /\ pc \in [Client -> Where]
          /\ \A c \in Client : req[c] \in Requests \cup {NoRequest}
          /\ left \in [Client -> SUBSET Block]
          /\ buffer \in [Client -> [Address -> Value \cup {None}]]
          /\ moved \in [Client -> SUBSET Address]
          /\ byte \in [Client -> [Block -> State \cup {None}]]
          /\ reply \in [Client -> [Address -> Value \cup {None}]]

(* While a block is read, changed in part and written back: its client holds the lock for that. *)
MergesUnderTheLock == \A c \in Client :
    pc[c] = "storing" /\ ~CoversAll(req[c], At(c)) => rmw = c

(* When all have their replies: some order of the requests explains them, and what is stored.  False here. *)
SomeOrderExplains == AllDone => Explained(start, before, req, reply, Contents)

(* When all have their replies: a write that nobody else's request touched is there.  False here, with copies. *)
WritesAreKept == AllDone => \A c \in Client : \A a \in req[c].at :
    (/\ req[c].kind = "write"
     /\ \A d \in Client : d # c /\ Changes(req[d]) => a \notin req[d].at) => Contents[a] = c

(* Once a read has its reply, if all requests are for whole blocks: it is told one value for a block.  False here, if
   blocks move in parts.  (So may two writes of a block be mixed, which a file system that locks files prevents.) *)
ReadsAreWhole == \A c \in Client : pc[c] = "done" /\ req[c].kind = "read" =>
    \A a, b \in req[c].at : BlockOf(a) = BlockOf(b) => reply[c][a] = reply[c][b]

(* From one moment to the next: a block that no longer shows the base never does again.  False here, with copies. *)
StatesNeverGoBack == [][\A b \in Block : state[b] # NotAllocated => state'[b] # NotAllocated]_state

-----------------------------------------------------------------------------
(* Probes: each must be violated, or the bound is too narrow to mean much. *)

(* A block is read for a merge while another client stores in it. *)
NeverStoredBesideAMerge == ~ \E c, d \in Client :
    rmw = c /\ pc[d] = "storing" /\ moved[d] # {} /\ rmw # d /\ At(c) = At(d)
=============================================================================
