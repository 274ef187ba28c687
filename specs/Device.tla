------------------------------- MODULE Device -------------------------------
(***************************************************************************)
(* What clients may observe: each asks, what it asked takes effect at one  *)
(* instant (per unit of atomicity), and then it has its reply.  How this   *)
(* comes about is for the other modules to say; they refine this one.      *)
(*                                                                         *)
(* Twin: specs/device.py.                                                  *)
(***************************************************************************)
EXTENDS Disk

VARIABLES
    contents,  \* [Address -> Value]
    status,    \* [Client -> {"idle", "pending", "done"}]
    req,       \* [Client -> request]
    todo,      \* [Client -> set of the units of its request that have not taken effect]
    reply,     \* [Client -> [Address -> Value or None]]: what a read was told
    before,    \* [Client -> SUBSET Client]: who had a reply when it asked; never looked at by an action
    start      \* [Address -> Value]: what the device held at first; never looked at by an action

vars == <<contents, status, req, todo, reply, before, start>>

Init == /\ \E state \in [Block -> Initially] : start = [a \in Address |-> Shown(state[BlockOf(a)], Old)]
        /\ contents = start
        /\ status = [c \in Client |-> "idle"]
        /\ req = [c \in Client |-> NoRequest]
        /\ todo = [c \in Client |-> {}]
        /\ reply = [c \in Client |-> [a \in Address |-> None]]
        /\ before = [c \in Client |-> {}]

Invoke(c, r) == /\ status[c] = "idle"
                /\ status' = [status EXCEPT ![c] = "pending"]
                /\ req' = [req EXCEPT ![c] = r]
                /\ todo' = [todo EXCEPT ![c] = Units(r)]
                /\ before' = [before EXCEPT ![c] = {d \in Client : status[d] = "done"}]
                /\ UNCHANGED <<contents, reply, start>>

TakeEffect(c, unit) == /\ unit \in todo[c]
                       /\ todo' = [todo EXCEPT ![c] = @ \ {unit}]
                       /\ contents' = After(contents, c, req[c], unit)
                       /\ reply' = [reply EXCEPT ![c] = [a \in Address |->
                              IF req[c].kind = "read" /\ a \in unit THEN contents[a] ELSE @[a]]]
                       /\ UNCHANGED <<status, req, before, start>>

Respond(c) == /\ status[c] = "pending"
              /\ todo[c] = {}
              /\ status' = [status EXCEPT ![c] = "done"]
              /\ UNCHANGED <<contents, req, todo, reply, before, start>>

AllDone == \A c \in Client : status[c] = "done"

Finished == AllDone /\ UNCHANGED vars  \* so that the end is no deadlock

Next == \/ \E c \in Client :
               \/ \E r \in Requests : Invoke(c, r)
               \/ \E unit \in todo[c] : TakeEffect(c, unit)
               \/ Respond(c)
        \/ Finished

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* Always: variables have the shape they were declared with. *)
TypeOK == /\ contents \in [Address -> Value]
          /\ status \in [Client -> {"idle", "pending", "done"}]
          /\ \A c \in Client : req[c] \in Requests \cup {NoRequest} /\ todo[c] \subseteq Units(req[c])
          /\ reply \in [Client -> [Address -> Value \cup {None}]]
          /\ before \in [Client -> SUBSET Client]
          /\ start \in [Address -> {Base, Old, Zero}]

(* When all have their replies: some order of the requests explains them. *)
SomeOrderExplains == AllDone => Explained(start, before, req, reply, contents)

-----------------------------------------------------------------------------
(* Probes: each must be violated, or the bound is too narrow to mean much. *)

(* A read is told a half of one write and a half of another: right for sectors, never for blocks. *)
NeverTorn == ~ \E c \in Client : /\ status[c] = "done"
                                 /\ \E a, b \in req[c].at : BlockOf(a) = BlockOf(b) /\ reply[c][a] # reply[c][b]
=============================================================================
