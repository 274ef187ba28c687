-------------------------------- MODULE Disk --------------------------------
(***************************************************************************)
(* What every module here speaks of: a disk of blocks of sectors, and what *)
(* clients may ask of it.  A sector holds a value that says who put it     *)
(* there, so old data cannot be taken for new.                             *)
(*                                                                         *)
(* Twin: specs/disk.py.                                                    *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets, Sequences

CONSTANTS
    Client,           \* set of strings; each makes one request
    BlockCount,       \* number of blocks
    SectorsPerBlock,  \* number of sectors in each: a block moves in so many parts
    Unit,             \* "request", "block" or "sector": what takes effect at one instant
    Initially,        \* SUBSET State: what blocks may be at first
    Requests          \* what clients may ask: one of the sets at the end

Base == "base"        \* what the base holds
Old == "old"          \* what the store holds at first, be it named by a state or not
Zero == "zero"        \* what a trimmed block reads as
None == "none"        \* no value, no client, no state

NotAllocated == "NOT_ALLOCATED"
Allocated == "ALLOCATED"
Trimmed == "TRIMMED"
State == {NotAllocated, Allocated, Trimmed}

ASSUME Client \cap ({Base, Old, Zero, None} \cup State) = {}
ASSUME Unit \in {"request", "block", "sector"}
ASSUME Initially \subseteq State

Value == Client \cup {Base, Old, Zero}  \* a client's name is what it writes

Block == 0..(BlockCount - 1)
Address == 0..(BlockCount * SectorsPerBlock - 1)

BlockOf(a) == a \div SectorsPerBlock
SectorsOf(b) == {a \in Address : BlockOf(a) = b}
Least(numbers) == CHOOSE n \in numbers : \A m \in numbers : n <= m

(* What a sector reads as, given the state of its block and what is stored. *)
Shown(state, stored) == CASE state = NotAllocated -> Base
                          [] state = Allocated    -> stored
                          [] state = Trimmed      -> Zero

(* One step of a transfer: a sector if transfers are torn, else all that goes to or comes from one block. *)
NextPart(torn, addresses) ==
    IF torn THEN {Least(addresses)}
            ELSE {a \in addresses : BlockOf(a) = BlockOf(Least(addresses))}

-----------------------------------------------------------------------------
(* Requests: [kind |-> STRING, at |-> SUBSET Address]. *)

NoRequest == [kind |-> None, at |-> {}]  \* of a client that has not asked yet
Flush == [kind |-> "flush", at |-> {}]

Changing == {"write", "zero", "trim"}
Changes(r) == r.kind \in Changing
BlocksOf(r) == {BlockOf(a) : a \in r.at}
InBlock(r, b) == r.at \cap SectorsOf(b)
CoversAll(r, b) == SectorsOf(b) \subseteq r.at
PartlyCovered(r) == {b \in BlocksOf(r) : ~CoversAll(r, b)}

(* What client c leaves in the sectors that its request r changes. *)
NewValue(c, r) == IF r.kind = "write" THEN c ELSE Zero

(* The disk after request r of client c has taken effect on some addresses. *)
After(held, c, r, addresses) ==
    [a \in Address |-> IF Changes(r) /\ a \in addresses THEN NewValue(c, r) ELSE held[a]]

(* The addresses that a request may find at different instants are in different groups. *)
Groups == CASE Unit = "request" -> {Address}
            [] Unit = "block"   -> {SectorsOf(b) : b \in Block}
            [] Unit = "sector"  -> {{a} : a \in Address}

(* The parts of a request that take effect at one instant each. *)
Units(r) == IF r.at = {} THEN {{}} ELSE {r.at \cap group : group \in Groups} \ {{}}

-----------------------------------------------------------------------------
(* Linearizability, said without any mapping: is there an order of the requests that explains what was seen?
   It is asked once all clients have their replies; every behaviour gets there.
     start   what the disk held at first      before  [Client -> those who had their reply when it asked]
     req     what was asked                   reply   [Client -> [Address -> what it was told, or None]]
     held    what the disk holds at the end *)

Orders == {order \in [1..Cardinality(Client) -> Client] : \A i, j \in DOMAIN order : order[i] = order[j] => i = j}

Respects(order, before) == \A i, j \in DOMAIN order : i < j => order[j] \notin before[order[i]]

ExplainedBy(order, group, start, req, reply, held) ==
    LET Count == Cardinality(Client)
        Touched(i) == req[order[i]].at \cap group
        Holds[i \in 0..Count] == IF i = 0 THEN start ELSE After(Holds[i - 1], order[i], req[order[i]], Touched(i))
    IN /\ \A a \in group : held[a] = Holds[Count][a]
       /\ \A i \in 1..Count : req[order[i]].kind = "read" =>
              \A a \in Touched(i) : reply[order[i]][a] = Holds[i - 1][a]

Explained(start, before, req, reply, held) ==
    \A group \in Groups : \E order \in Orders :
        Respects(order, before) /\ ExplainedBy(order, group, start, req, reply, held)

-----------------------------------------------------------------------------
(* Sets of requests.  A block has two sectors in all of them: 0..0 is a part, 0..1 a whole block. *)

Each(kinds, ranges) == {[kind |-> k, at |-> at] : k \in kinds, at \in ranges}

OneBlock ==  \* everything that can be asked of one block, up to symmetry
    Each({"read", "write", "zero", "trim"}, {0..0, 0..1}) \cup Each({"read", "write"}, {1..1})
        \cup Each({"cache"}, {0..1}) \cup {Flush}
OneBlockCore ==  \* the same without what differs little, for three clients
    Each({"read", "trim", "cache"}, {0..1}) \cup Each({"write"}, {0..0, 1..1, 0..1})
EachKind ==  \* and that with the kinds it lacks
    OneBlockCore \cup Each({"zero"}, {0..0}) \cup {Flush}
TwoBlocks ==  \* parts, a whole block with a part, two parts, two whole blocks
    Each({"read"}, {0..0, 1..2, 0..3}) \cup Each({"write"}, {0..0, 2..3, 1..2, 0..2, 0..3})
        \cup Each({"trim"}, {1..2, 0..2}) \cup Each({"cache"}, {0..3})
PartAndWhole == Each({"write"}, {0..0, 0..1})
PartAndTrim == Each({"write"}, {0..0}) \cup Each({"trim"}, {0..1})
ReadPartWriteWhole == Each({"read"}, {0..0}) \cup Each({"write"}, {0..1})
ReadPartWriteOther == Each({"read"}, {0..0}) \cup Each({"write"}, {1..1})
ReadAndWriteWhole == Each({"read", "write"}, {0..1})
CacheAndWrite == Each({"cache", "write"}, {0..1})
Neighbours == Each({"read"}, {0..1}) \cup Each({"write"}, {2..3})
ReadAndWriteBoth == Each({"read", "write"}, {0..3})
=============================================================================
