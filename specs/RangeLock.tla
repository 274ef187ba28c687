------------------------------ MODULE RangeLock -----------------------------
(***************************************************************************)
(* The overlay that is shipped.  Two rules: the base never changes, so it  *)
(* is read outside every lock; and a request takes one lock over all its   *)
(* blocks, shared to look and exclusive to change, first come first        *)
(* served.  What was seen before the lock is looked at again under it; but *)
(* a read that sees nothing but NOT_ALLOCATED needs no lock: that state    *)
(* never comes back, so all its blocks were in it at its first look.       *)
(*                                                                         *)
(* A base read is one step that touches nothing shared: when it happens    *)
(* cannot be told.  Store and client exchange a sector a step if Torn.     *)
(* Holes are not punched here: in a trimmed block the store may hold       *)
(* anything, and does, since nothing is ever cleared.                      *)
(*                                                                         *)
(* Twin: specs/range_lock.py.  Code: impl/overlay/overlay.py, whose locks  *)
(* (impl/overlay/rangelock.py) are one step here.                          *)
(***************************************************************************)
EXTENDS Disk

CONSTANTS
    Torn,         \* whether a block moves to and from the store a sector at a time
    CopyOnRead,   \* whether a read keeps what it fetched from the base
    CopyOnCache,  \* whether a cache request does
    FreeBlocks,   \* a read of so many blocks at most looks at them without the lock first
    LooksAgain    \* TRUE; FALSE leaves the second look out, and must fail

VARIABLES
    state,    \* [Block -> State]
    store,    \* [Address -> Value]: means something only where the block is ALLOCATED
    queue,    \* sequence of the clients that hold or wait for their range, in order of arrival
    pc,       \* [Client -> where it is; the values are in Where below]
    req,      \* [Client -> request]
    seen,     \* [Client -> [Block -> State or None]]: the states as it saw them last
    fetched,  \* [Client -> SUBSET Block]: of these it has the base's content, read with no lock held
    moved,    \* [Client -> SUBSET Address]: what it has stored under the lock it holds
    reply,    \* [Client -> [Address -> Value or None]]: what a read is going to be told
    covered,  \* [Client -> [Address -> Value or None]]: what a change is putting its own over; for the proof only
    before,   \* [Client -> SUBSET Client]: who had a reply when it asked; for the proof only
    start     \* [Address -> Value]: what the device held at first; for the proof only

vars == <<state, store, queue, pc, req, seen, fetched, moved, reply, covered, before, start>>

Where == {"idle", "asked", "waiting", "inside",  \* the lock of every request
          "looked", "fetched", "returning", "keeping",  \* reads and caches that go on to the base, and come back
          "leaving", "answering", "done"}

NothingSeen == [b \in Block |-> None]
NothingCovered == [a \in Address |-> None]

-----------------------------------------------------------------------------
(* Range locks *)

Exclusive(c) == Changes(req[c])
CameBack(c) == pc[c] \in {"returning", "keeping"} \/ (pc[c] = "leaving" /\ ~Exclusive(c))
Range(c) == IF CameBack(c) THEN fetched[c] ELSE BlocksOf(req[c])
Conflict(c, d) == Range(c) \cap Range(d) # {} /\ (Exclusive(c) \/ Exclusive(d))

Place(c) == CHOOSE i \in DOMAIN queue : queue[i] = c

(* Nobody who came before c stands in its way. *)
MayEnter(c) == \A i \in 1..(Place(c) - 1) : ~Conflict(queue[i], c)

Without(c) == SelectSeq(queue, LAMBDA d : d # c)

-----------------------------------------------------------------------------
(* What a client stores under its lock, given what it has seen there *)

(* The addresses in block b: all of it, if it is not ALLOCATED yet, so that nothing in it is undefined after. *)
StoredIn(c, b) == LET r == req[c] IN
    CASE pc[c] = "keeping" -> IF seen[c][b] = NotAllocated THEN SectorsOf(b) ELSE {}
      [] r.kind = "trim" /\ (CoversAll(r, b) \/ seen[c][b] = Trimmed) -> {}
      [] CoversAll(r, b) \/ seen[c][b] = Allocated -> InBlock(r, b)
      [] OTHER -> SectorsOf(b)

ToStore(c) == UNION {StoredIn(c, b) : b \in Range(c)} \ moved[c]

StoredValue(c, a) == IF pc[c] = "inside" /\ a \in req[c].at THEN NewValue(c, req[c])
                     ELSE IF seen[c][BlockOf(a)] = Trimmed THEN Zero
                     ELSE Base

(* What becomes of the state of a block in its range. *)
Published(c, b) ==
    IF StoredIn(c, b) # {} THEN Allocated
    ELSE IF req[c].kind = "trim" THEN Trimmed
    ELSE state[b]

-----------------------------------------------------------------------------
Init == /\ state \in [Block -> Initially]
        /\ store = [a \in Address |-> Old]
        /\ queue = <<>>
        /\ pc = [c \in Client |-> "idle"]
        /\ req = [c \in Client |-> NoRequest]
        /\ seen = [c \in Client |-> NothingSeen]
        /\ fetched = [c \in Client |-> {}]
        /\ moved = [c \in Client |-> {}]
        /\ reply = [c \in Client |-> [a \in Address |-> None]]
        /\ covered = [c \in Client |-> NothingCovered]
        /\ before = [c \in Client |-> {}]
        /\ start = [a \in Address |-> Shown(state[BlockOf(a)], Old)]

Invoke(c, r) == /\ pc[c] = "idle"
                /\ pc' = [pc EXCEPT ![c] = "asked"]
                /\ req' = [req EXCEPT ![c] = r]
                /\ before' = [before EXCEPT ![c] = {d \in Client : pc[d] = "done"}]
                /\ UNCHANGED <<state, store, queue, seen, fetched, moved, reply, covered, start>>

(* Whether it is a read that may be done without the lock, as far as it has looked. *)
MayShowBase(c) == /\ req[c].kind = "read"
                  /\ Cardinality(BlocksOf(req[c])) <= FreeBlocks
                  /\ \A b \in Block : seen[c][b] \in {None, NotAllocated}

(* Blocks at whose state it still has to glance: a change, to know whether it needs the base; a read, whether it needs
   anything else. *)
ToGlance(c) == {b \in IF Changes(req[c]) THEN PartlyCovered(req[c])
                      ELSE IF MayShowBase(c) THEN BlocksOf(req[c]) ELSE {} : seen[c][b] = None}

(* With no lock: the state may be out of date before the base has been read.  A read of one block that shows the base
   takes effect here; one of several did so at its first glance, if this one was the last and all found the same. *)
Glance(c) == /\ pc[c] = "asked"
             /\ ToGlance(c) # {}
             /\ LET b == Least(ToGlance(c)) IN
                    /\ seen' = [seen EXCEPT ![c][b] = state[b]]
                    /\ fetched' = [fetched EXCEPT ![c] =
                           IF state[b] = NotAllocated /\ Changes(req[c]) THEN @ \cup {b} ELSE @]
                    /\ pc' = [pc EXCEPT ![c] =
                           IF MayShowBase(c) /\ ToGlance(c) = {b} /\ state[b] = NotAllocated THEN "looked" ELSE @]
             /\ UNCHANGED <<state, store, queue, req, moved, reply, covered, before, start>>

(* A flush finds nothing to do: the store's own durability is not a matter of this module. *)
FlushStore(c) == /\ pc[c] = "asked"
                 /\ req[c].kind = "flush"
                 /\ pc' = [pc EXCEPT ![c] = "answering"]
                 /\ UNCHANGED <<state, store, queue, req, seen, fetched, moved, reply, covered, before, start>>

Arrive(c) == /\ \/ pc[c] = "asked" /\ req[c].kind # "flush" /\ ToGlance(c) = {}
                \/ pc[c] = "fetched"
             /\ queue' = Append(queue, c)
             /\ pc' = [pc EXCEPT ![c] = IF @ = "asked" THEN "waiting" ELSE "returning"]
             /\ UNCHANGED <<state, store, req, seen, fetched, moved, reply, covered, before, start>>

Enter(c) == /\ pc[c] = "waiting"
            /\ MayEnter(c)
            /\ pc' = [pc EXCEPT ![c] = "inside"]
            /\ seen' = [seen EXCEPT ![c] = [b \in Block |->
                   IF b \in Range(c) /\ (LooksAgain \/ @[b] = None) THEN state[b] ELSE @[b]]]
            /\ reply' = [reply EXCEPT ![c] = [a \in Address |->
                   IF req[c].kind = "read" /\ a \in req[c].at /\ state[BlockOf(a)] = Trimmed THEN Zero ELSE @[a]]]
            /\ covered' = [covered EXCEPT ![c] = [a \in Address |->
                   IF Changes(req[c]) /\ a \in req[c].at THEN Shown(state[BlockOf(a)], store[a]) ELSE None]]
            /\ UNCHANGED <<state, store, queue, req, fetched, moved, before, start>>

(* The overlay's bytes that a read has still to copy out. *)
ToCopy(c) == IF req[c].kind = "read"
             THEN {a \in req[c].at : seen[c][BlockOf(a)] = Allocated /\ reply[c][a] = None}
             ELSE {}

Copy(c) == /\ pc[c] = "inside"
           /\ ToCopy(c) # {}
           /\ reply' = [reply EXCEPT ![c] = [a \in Address |->
                  IF a \in NextPart(Torn, ToCopy(c)) THEN store[a] ELSE @[a]]]
           /\ UNCHANGED <<state, store, queue, pc, req, seen, fetched, moved, covered, before, start>>

(* Linearization point of whatever only looks, under the lock: the base's parts are still missing, but they cannot have
   changed. *)
Leave(c) == /\ pc[c] = "inside"
            /\ ~Exclusive(c)
            /\ ToCopy(c) = {}
            /\ queue' = Without(c)
            /\ pc' = [pc EXCEPT ![c] = "looked"]
            /\ UNCHANGED <<state, store, req, seen, fetched, moved, reply, covered, before, start>>

Copies(c) == \/ req[c].kind = "read" /\ CopyOnRead
             \/ req[c].kind = "cache" /\ CopyOnCache

(* The base is read, with no lock held; what is going to be kept is read by whole blocks. *)
Fetch(c) == LET missing == {b \in BlocksOf(req[c]) : seen[c][b] = NotAllocated}
                kept == IF Copies(c) THEN missing ELSE {} IN
            /\ pc[c] = "looked"
            /\ reply' = [reply EXCEPT ![c] = [a \in Address |->
                   IF req[c].kind = "read" /\ a \in req[c].at /\ BlockOf(a) \in missing THEN Base ELSE @[a]]]
            /\ fetched' = [fetched EXCEPT ![c] = kept]
            /\ pc' = [pc EXCEPT ![c] = IF kept = {} THEN "answering" ELSE "fetched"]
            /\ seen' = [seen EXCEPT ![c] = IF kept = {} \/ LooksAgain THEN NothingSeen ELSE @]
            /\ UNCHANGED <<state, store, queue, req, moved, covered, before, start>>

(* The range is shared, and that is enough: writers are kept out, and another who copies copies the same. *)
LookAgain(c) == /\ pc[c] = "returning"
                /\ MayEnter(c)
                /\ pc' = [pc EXCEPT ![c] = "keeping"]
                /\ seen' = [seen EXCEPT ![c] = [b \in Block |->
                       IF b \in Range(c) /\ LooksAgain THEN state[b] ELSE @[b]]]
                /\ UNCHANGED <<state, store, queue, req, fetched, moved, reply, covered, before, start>>

Stores(c) == pc[c] = "keeping" \/ (pc[c] = "inside" /\ Exclusive(c))

Store(c) == /\ Stores(c)
            /\ ToStore(c) # {}
            /\ LET part == NextPart(Torn, ToStore(c)) IN
                   /\ store' = [a \in Address |-> IF a \in part THEN StoredValue(c, a) ELSE store[a]]
                   /\ moved' = [moved EXCEPT ![c] = @ \cup part]
            /\ UNCHANGED <<state, queue, pc, req, seen, fetched, reply, covered, before, start>>

ToPublish(c) == {b \in Range(c) : state[b] # Published(c, b)}

(* States after data: a state never names what is not there.  Block by block, for some look without the lock.  The last one
   is the linearization point of whatever changes something. *)
Publish(c) == LET left == ToPublish(c) IN
              /\ Stores(c)
              /\ ToStore(c) = {}
              /\ state' = [b \in Block |-> IF left # {} /\ b = Least(left) THEN Published(c, b) ELSE state[b]]
              /\ pc' = [pc EXCEPT ![c] = IF Cardinality(left) > 1 THEN @ ELSE "leaving"]
              /\ covered' = [covered EXCEPT ![c] = IF Cardinality(left) > 1 THEN @ ELSE NothingCovered]
              /\ UNCHANGED <<store, queue, req, seen, fetched, moved, reply, before, start>>

LeaveForGood(c) == /\ pc[c] = "leaving"
                   /\ queue' = Without(c)
                   /\ pc' = [pc EXCEPT ![c] = "answering"]
                   /\ seen' = [seen EXCEPT ![c] = NothingSeen]
                   /\ fetched' = [fetched EXCEPT ![c] = {}]
                   /\ moved' = [moved EXCEPT ![c] = {}]
                   /\ UNCHANGED <<state, store, req, reply, covered, before, start>>

Respond(c) == /\ pc[c] = "answering"
              /\ pc' = [pc EXCEPT ![c] = "done"]
              /\ UNCHANGED <<state, store, queue, req, seen, fetched, moved, reply, covered, before, start>>

AllDone == \A c \in Client : pc[c] = "done"

Finished == AllDone /\ UNCHANGED vars  \* so that the end is no deadlock, and every other is

Next == \/ \E c \in Client :
               \/ \E r \in Requests : Invoke(c, r)
               \/ Glance(c) \/ FlushStore(c) \/ Arrive(c) \/ Enter(c) \/ Copy(c) \/ Leave(c) \/ Fetch(c)
               \/ LookAgain(c) \/ Store(c) \/ Publish(c) \/ LeaveForGood(c) \/ Respond(c)
        \/ Finished

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* The refinement mapping.  A change has taken effect when its last state is set; until then the device holds what it has
   covered.  A look has once its client has left, or needs no lock, whatever of it is still to be fetched.  A read of several
   blocks that needs no lock has taken effect before it knows that: no mapping of one state can say so, and where
   FreeBlocks > 1, only SomeOrderExplains is asked. *)

Changed(c) == pc[c] \in {"leaving", "answering", "done"}
Looked(c) == pc[c] \in {"looked", "fetched", "returning", "keeping", "leaving", "answering", "done"}
TookEffect(c) == IF req[c].kind = "flush" THEN pc[c] \in {"answering", "done"}
                 ELSE IF Changes(req[c]) THEN Changed(c) ELSE Looked(c)

Contents == [a \in Address |->
    LET changing == {c \in Client : pc[c] = "inside" /\ Exclusive(c) /\ a \in req[c].at} IN
    IF changing = {} THEN Shown(state[BlockOf(a)], store[a])
                     ELSE LET c == CHOOSE c \in changing : TRUE IN covered[c][a]]

ReplyToBe(c) == [a \in Address |->
    IF req[c].kind # "read" \/ a \notin req[c].at \/ ~Looked(c) THEN None
    ELSE IF reply[c][a] = None THEN Base
    ELSE reply[c][a]]

Abstract == INSTANCE Device WITH
    contents <- Contents,
    status   <- [c \in Client |-> IF pc[c] \in {"idle", "done"} THEN pc[c] ELSE "pending"],
    todo     <- [c \in Client |-> IF pc[c] = "idle" \/ TookEffect(c) THEN {} ELSE Units(req[c])],
    reply    <- [c \in Client |-> ReplyToBe(c)]

(* Every behaviour is one of Device. *)
RefinesDevice == Abstract!Spec

-----------------------------------------------------------------------------
(* Always: variables have the shape they were declared with. *)
TypeOK == /\ state \in [Block -> State]
          /\ store \in [Address -> Value]
          /\ pc \in [Client -> Where]
          /\ \A c \in Client : req[c] \in Requests \cup {NoRequest}
          /\ seen \in [Client -> [Block -> State \cup {None}]]
          /\ fetched \in [Client -> SUBSET Block]
          /\ moved \in [Client -> SUBSET Address]
          /\ reply \in [Client -> [Address -> Value \cup {None}]]
          /\ covered \in [Client -> [Address -> Value \cup {None}]]
          /\ \A c \in Client : pc[c] = "done" /\ req[c].kind = "read" => \A a \in req[c].at : reply[c][a] # None

Holds(c) == pc[c] \in {"inside", "keeping", "leaving"}

(* Always: those who hold overlapping ranges only look. *)
WritersAreAlone == \A c, d \in Client :
    c # d /\ Holds(c) /\ Holds(d) /\ Range(c) \cap Range(d) # {} => ~Exclusive(c) /\ ~Exclusive(d)

(* While a lock is held: what was seen under it is true, but for copies that others make of what was NOT_ALLOCATED, and
   for what its holder has published itself. *)
SeenIsTrue == \A c \in Client : pc[c] \in {"inside", "keeping"} => \A b \in Range(c) :
    \/ seen[c][b] = state[b]
    \/ Stores(c) /\ Exclusive(c) /\ ToStore(c) = {} /\ state[b] = Published(c, b)
    \/ seen[c][b] = NotAllocated /\ state[b] = Allocated /\ ~Exclusive(c)

(* While a change holds its lock: what it merges with the base it has fetched. *)
NothingIsMissing == \A c \in Client : pc[c] = "inside" /\ Exclusive(c) =>
    \A b \in PartlyCovered(req[c]) : seen[c][b] = NotAllocated => b \in fetched[c]

(* When all have their replies: some order of the requests explains them, and what is stored. *)
SomeOrderExplains == AllDone => Explained(start, before, req, reply, Contents)

(* From one moment to the next: a block that no longer shows the base never does again. *)
StatesNeverGoBack == [][\A b \in Block : state[b] # NotAllocated => state'[b] # NotAllocated]_state

-----------------------------------------------------------------------------
(* Probes: each must be violated, or the bound is too narrow to mean much. *)

(* A write is published while another client waits for the range. *)
NeverPublishedBeforeAWaiter == ~ \E c, d \in Client :
    /\ pc[c] = "leaving" /\ req[c].kind = "write"
    /\ pc[d] = "waiting" /\ Range(c) \cap Range(d) # {}

(* A change finds, under its lock, another state than the one it had glanced at. *)
NeverOvertaken == ~ \E c \in Client : \E b \in Block :
    pc[c] = "inside" /\ Exclusive(c) /\ b \in fetched[c] /\ seen[c][b] # NotAllocated

(* A copy finds that its block is not NOT_ALLOCATED any more. *)
NeverCopiesInVain == ~ \E c \in Client : \E b \in Block :
    pc[c] = "keeping" /\ b \in fetched[c] /\ seen[c][b] # NotAllocated

(* Two clients copy one block at the same time. *)
NeverTwoCopies == ~ \E c, d \in Client :
    c # d /\ pc[c] = "keeping" /\ pc[d] = "keeping" /\ moved[c] # {} /\ moved[d] # {}

(* A read has seen the base without the lock while a change of it is being stored. *)
NeverSeesTheBaseBesideAChange == ~ \E c, d \in Client :
    /\ pc[c] = "looked" /\ \A b \in BlocksOf(req[c]) : seen[c][b] = NotAllocated
    /\ pc[d] = "inside" /\ Exclusive(d) /\ moved[d] # {} /\ BlocksOf(req[c]) \cap Range(d) # {}

(* A read has looked at a block without the lock, and it does not show the base any more. *)
NeverLooksInVain == ~ \E c \in Client : \E b \in BlocksOf(req[c]) :
    req[c].kind = "read" /\ pc[c] = "asked" /\ seen[c][b] = NotAllocated /\ state[b] # NotAllocated

(* Somebody waits for a client that itself waits. *)
NeverWaitsForAWaiter == ~ \E c, d \in Client :
    /\ c # d /\ pc[c] = "waiting" /\ pc[d] = "waiting" /\ ~MayEnter(c) /\ ~MayEnter(d) /\ Conflict(c, d)
=============================================================================
