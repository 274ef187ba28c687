------------------------------ MODULE GlobalLock ----------------------------
(***************************************************************************)
(* What there was before the patch: one lock, held for all that a request  *)
(* does to one block, the base read included.  Right, block by block; not  *)
(* for a request of several blocks, between which the lock is given back.  *)
(* And slow: whoever waits for the base makes everybody wait.              *)
(*                                                                         *)
(* Twin: specs/global_lock.py.  Source: nbdkit's cow filter before "cow:   *)
(* Use more fine-grained locking" (February 2021).                         *)
(***************************************************************************)
EXTENDS Disk

CONSTANTS
    Torn,        \* whether a block moves to and from the store a sector at a time
    CopyOnCache  \* whether a cache request fetches and keeps; it does nothing under the lock otherwise

VARIABLES
    state,   \* [Block -> State]
    store,   \* [Address -> Value]
    holder,  \* Client or None: who holds the lock
    pc,      \* [Client -> where it is; the values are in Where below]
    req,     \* [Client -> request]
    left,    \* [Client -> SUBSET Block]: what it has not finished; it is at the least of them
    buffer,  \* [Client -> [Address -> Value or None]]: what it has read of its block
    moved,   \* [Client -> SUBSET Address]: what it has stored of its block
    reply,   \* [Client -> [Address -> Value or None]]: what a read is going to be told
    before,  \* [Client -> SUBSET Client]: who had a reply when it asked; for the proof only
    start    \* [Address -> Value]: what the device held at first; for the proof only

vars == <<state, store, holder, pc, req, left, buffer, moved, reply, before, start>>

Where == {"idle", "flushing", "locking", "fetching", "copying", "storing", "marking", "unlocking", "answering", "done"}

Nothing == [a \in Address |-> None]

-----------------------------------------------------------------------------
(* Where a client goes, given the blocks that it has not finished. *)
Entry(blocks) == IF blocks = {} THEN "answering" ELSE "locking"

At(c) == Least(left[c])
WholeBlock(c) == SectorsOf(At(c))
AfterReading(c) == IF req[c].kind = "read" THEN "unlocking" ELSE "storing"

(* Where it goes once it holds the lock, and sees its block's state. *)
Task(r, b) ==
    CASE r.kind = "cache" -> IF CopyOnCache /\ state[b] = NotAllocated THEN "fetching" ELSE "unlocking"
      [] Changes(r) /\ CoversAll(r, b) -> IF r.kind = "trim" THEN "marking" ELSE "storing"
      [] OTHER -> CASE state[b] = NotAllocated -> "fetching"
                    [] state[b] = Allocated    -> "copying"
                    [] state[b] = Trimmed      -> IF r.kind = "read" THEN "unlocking" ELSE "storing"

-----------------------------------------------------------------------------
Init == /\ state \in [Block -> Initially]
        /\ store = [a \in Address |-> Old]
        /\ holder = None
        /\ pc = [c \in Client |-> "idle"]
        /\ req = [c \in Client |-> NoRequest]
        /\ left = [c \in Client |-> {}]
        /\ buffer = [c \in Client |-> Nothing]
        /\ moved = [c \in Client |-> {}]
        /\ reply = [c \in Client |-> Nothing]
        /\ before = [c \in Client |-> {}]
        /\ start = [a \in Address |-> Shown(state[BlockOf(a)], Old)]

Invoke(c, r) == /\ pc[c] = "idle"
                /\ pc' = [pc EXCEPT ![c] = IF r.kind = "flush" THEN "flushing" ELSE Entry(BlocksOf(r))]
                /\ req' = [req EXCEPT ![c] = r]
                /\ left' = [left EXCEPT ![c] = BlocksOf(r)]
                /\ before' = [before EXCEPT ![c] = {d \in Client : pc[d] = "done"}]
                /\ UNCHANGED <<state, store, holder, buffer, moved, reply, start>>

(* A flush finds nothing to do: the overlay is gone when the server is. *)
FlushNothing(c) == /\ pc[c] = "flushing"
                   /\ pc' = [pc EXCEPT ![c] = "answering"]
                   /\ UNCHANGED <<state, store, holder, req, left, buffer, moved, reply, before, start>>

(* Linearization point of a change, as far as this block is concerned. *)
Lock(c) == /\ pc[c] = "locking"
           /\ holder = None
           /\ holder' = c
           /\ pc' = [pc EXCEPT ![c] = Task(req[c], At(c))]
           /\ buffer' = [buffer EXCEPT ![c] = [a \in Address |->
                  IF a \in WholeBlock(c) /\ state[At(c)] = Trimmed THEN Zero ELSE None]]
           /\ UNCHANGED <<state, store, req, left, moved, reply, before, start>>

(* Everybody waits. *)
Fetch(c) == /\ pc[c] = "fetching"
            /\ buffer' = [buffer EXCEPT ![c] = [a \in Address |-> IF a \in WholeBlock(c) THEN Base ELSE None]]
            /\ pc' = [pc EXCEPT ![c] = AfterReading(c)]
            /\ UNCHANGED <<state, store, holder, req, left, moved, reply, before, start>>

Copy(c) == LET missing == {a \in WholeBlock(c) : buffer[c][a] = None}
               part == NextPart(Torn, missing) IN
           /\ pc[c] = "copying"
           /\ buffer' = [buffer EXCEPT ![c] = [a \in Address |-> IF a \in part THEN store[a] ELSE @[a]]]
           /\ pc' = [pc EXCEPT ![c] = IF part = missing THEN AfterReading(c) ELSE @]
           /\ UNCHANGED <<state, store, holder, req, left, moved, reply, before, start>>

(* The whole block, whatever part of it the request changes; all of it as it was, if that is none. *)
Store(c) == LET part == NextPart(Torn, WholeBlock(c) \ moved[c]) IN
            /\ pc[c] = "storing"
            /\ store' = [a \in Address |-> IF a \notin part THEN store[a]
                                           ELSE IF Changes(req[c]) /\ a \in req[c].at THEN NewValue(c, req[c])
                                           ELSE buffer[c][a]]
            /\ moved' = [moved EXCEPT ![c] = @ \cup part]
            /\ pc' = [pc EXCEPT ![c] = IF moved[c] \cup part = WholeBlock(c) THEN "marking" ELSE @]
            /\ UNCHANGED <<state, holder, req, left, buffer, reply, before, start>>

Mark(c) == /\ pc[c] = "marking"
           /\ state' = [state EXCEPT ![At(c)] =
                  IF req[c].kind = "trim" /\ CoversAll(req[c], At(c)) THEN Trimmed ELSE Allocated]
           /\ pc' = [pc EXCEPT ![c] = "unlocking"]
           /\ UNCHANGED <<store, holder, req, left, buffer, moved, reply, before, start>>

(* Linearization point of a read, as far as this block is concerned. *)
Unlock(c) == /\ pc[c] = "unlocking"
             /\ holder' = None
             /\ reply' = [reply EXCEPT ![c] = [a \in Address |->
                    IF req[c].kind = "read" /\ a \in InBlock(req[c], At(c)) THEN buffer[c][a] ELSE @[a]]]
             /\ left' = [left EXCEPT ![c] = @ \ {At(c)}]
             /\ pc' = [pc EXCEPT ![c] = Entry(left[c] \ {At(c)})]
             /\ buffer' = [buffer EXCEPT ![c] = Nothing]
             /\ moved' = [moved EXCEPT ![c] = {}]
             /\ UNCHANGED <<state, store, req, before, start>>

Respond(c) == /\ pc[c] = "answering"
              /\ pc' = [pc EXCEPT ![c] = "done"]
              /\ UNCHANGED <<state, store, holder, req, left, buffer, moved, reply, before, start>>

AllDone == \A c \in Client : pc[c] = "done"

Finished == AllDone /\ UNCHANGED vars  \* so that the end is no deadlock, and every other is

Next == \/ \E c \in Client :
               \/ \E r \in Requests : Invoke(c, r)
               \/ FlushNothing(c) \/ Lock(c) \/ Fetch(c) \/ Copy(c) \/ Store(c) \/ Mark(c) \/ Unlock(c) \/ Respond(c)
        \/ Finished

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* The refinement mapping, for Unit = "block".  A change has taken effect on a block as soon as its client holds the
   lock, whatever of it is stored; a look has when the lock is given back. *)

Holds(c) == holder = c

Contents == [a \in Address |->
    IF holder # None /\ Changes(req[holder]) /\ a \in InBlock(req[holder], At(holder))
    THEN NewValue(holder, req[holder])
    ELSE Shown(state[BlockOf(a)], store[a])]

(* The blocks for which a request is still to take effect. *)
Remaining(c) == IF Holds(c) /\ Changes(req[c]) THEN left[c] \ {At(c)} ELSE left[c]

Abstract == INSTANCE Device WITH
    contents <- Contents,
    status   <- [c \in Client |-> IF pc[c] \in {"idle", "done"} THEN pc[c] ELSE "pending"],
    todo     <- [c \in Client |-> IF pc[c] = "flushing" THEN {{}} ELSE {InBlock(req[c], b) : b \in Remaining(c)}]

(* Every behaviour is one of Device, as long as a request may take effect block by block. *)
RefinesDevice == Abstract!Spec

-----------------------------------------------------------------------------
(* Always: variables have the shape they were declared with. *)
TypeOK == /\ state \in [Block -> State]
          /\ store \in [Address -> Value]
          /\ holder \in Client \cup {None}
          /\ pc \in [Client -> Where]
          /\ \A c \in Client : req[c] \in Requests \cup {NoRequest}
          /\ left \in [Client -> SUBSET Block]
          /\ buffer \in [Client -> [Address -> Value \cup {None}]]
          /\ moved \in [Client -> SUBSET Address]
          /\ reply \in [Client -> [Address -> Value \cup {None}]]

(* Always: whoever is at work on a block holds the lock. *)
WorksUnderTheLock == \A c \in Client :
    pc[c] \in {"fetching", "copying", "storing", "marking", "unlocking"} => Holds(c)

(* When all have their replies: some order of the requests explains them, and what is stored. *)
SomeOrderExplains == AllDone => Explained(start, before, req, reply, Contents)

(* From one moment to the next: a block that no longer shows the base never does again. *)
StatesNeverGoBack == [][\A b \in Block : state[b] # NotAllocated => state'[b] # NotAllocated]_state

-----------------------------------------------------------------------------
(* Probes: each must be violated, or the bound is too narrow to mean much. *)

(* Somebody waits for the lock while its holder waits for the base. *)
NeverWaitsForTheBaseOfAnother == ~ \E c, d \in Client : pc[c] = "fetching" /\ pc[d] = "locking"

(* The same though the two have no block in common. *)
NeverWaitsForTheBaseOfAStranger == ~ \E c, d \in Client :
    pc[c] = "fetching" /\ pc[d] = "locking" /\ BlocksOf(req[c]) \cap BlocksOf(req[d]) = {}
=============================================================================
