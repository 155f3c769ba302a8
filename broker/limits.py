"""Every bound of tensorbus, with its unit and its reason. What a user may want to change is a setting in config.py."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Before a session is open: a stranger may cost this much and no more.
HELLO_BODY_BYTES_MAX: Final = 64 * KIB
"""A hello names a client and its wishes; nothing in it is long."""
HELLO_TIMEOUT_S: Final = 3.0
"""A peer that has not said hello by then is not one of ours."""
HALF_OPEN_MAX: Final = 1024
"""Connections that have yet to say hello, of all addresses: every rank of the largest group may dial at the same
moment. Of more, the oldest goes."""
CONNECTIONS_PER_ADDRESS_MAX: Final = 2048
"""Connections of one address on the network: half of all sessions, so that no single machine keeps the others out."""
EXPIRED_AT_ONCE: Final = 4
"""Connections whose time for a hello is over and that are told so before messages have their turn again, some 25 us
each: thousands that have come at once are over at once."""
STRANGER_BYTES_MAX: Final = 4 * KIB
"""What may lie in the kernel of a hello, or of the opening of TLS, before a session reads it. It is longer than nearly
all of them, and shorter than any receive buffer, or the rest would never come."""
WORKER_HELLO_BYTES_MAX: Final = 16 * KIB
"""As STRANGER_BYTES_MAX, where there are several workers: a longer hello stays where it does not say to whom it wants.
TLS's has 1,700 bytes with a post-quantum key; this has room for the keys of several groups, is one record of TLS, and
shorter than a receive buffer that no setting has made smaller."""
STRANGER_RECORDS_MAX: Final = 16
"""In which TLS's first message may come where there are several workers: they look for the name of one in it each time
that more has come. Libraries put it into one or two."""
WORKERS_MAX: Final = 64
"""Of one broker. Each wakes for each connection, and a client that reads everything has a connection to each."""
STRANGERS_LOGGED_MAX: Final = 10
"""Lines about connections that never became sessions, in STRANGERS_LOGGED_S; of more, their number."""
STRANGERS_LOGGED_S: Final = 10.0

# The process as a whole.
DESCRIPTORS_RESERVED: Final = 64
"""Descriptors that no connection gets, or an eighth where there are fewer than 512: shared memory, boards and the HTTP
interface of those who are there go on when connections have used up all others."""
MEMORY_BYTES_MAX: Final = 1 << 50
"""What the broker may use when the configuration does not say: what there is."""
MEMORY_LOOK_BYTES: Final = 8 * MIB
"""After so many bytes of payloads it is looked at how much is used, although the tick is not over: in one tick a
publisher on the same host can send 50 MiB."""
MEMORY_LOOK_S: Final = 1.0
"""How often it is measured how much memory there is; how much is used, every tick."""

# One frame.
CHUNK_BYTES: Final = 512 * KIB
"""Payload of one frame, and so the longest that a control message waits behind a bulk one; it fits the L2 cache."""
FRAME_PAYLOAD_BYTES_MAX: Final = 1 * MIB
"""A frame with a longer payload is refused before memory is reserved; longer messages come in chunks."""
FRAME_BODY_BYTES_MAX: Final = 256 * KIB
"""Headers, shapes and names; a longer body belongs in a payload."""
SCRATCH_BYTES: Final = 64 * KIB
"""What one read may take in besides the payload that it completes: headers, bodies, small payloads."""
PLACED_BYTES_MIN: Final = 16 * KIB
"""Payloads from this length on are received straight into their final buffer; below, a copy is cheaper."""

REUSED_BYTES_MIN: Final = 1 * MIB
"""Arrays from this length on, which an application asks a client for, are made in memory that earlier ones have left;
shorter ones the allocator keeps by itself."""

# Batches (docs/wire.md section 6).
BATCH_BYTES: Final = 64 * KIB
"""A batch is sent when it holds this much."""
BATCH_WINDOW_NS: Final = 200_000
"""A batch is sent when its first message is this old."""
BATCH_GAP_NS: Final = 50_000
"""Messages of a topic further apart than this are never batched: the link is idle between them."""
BATCH_BURST_MESSAGES: Final = 8
"""Batching starts after this many messages of a topic in close succession; the first ones leave at once."""
BATCH_MESSAGES_MAX: Final = 4096
"""Entries of a batch; 64 KiB of empty ones."""
BATCHED_BYTES_MAX: Final = 8 * KIB
"""Longer payloads gain nothing from a batch."""
BATCH_BYTES_MAX: Final = 512 * KIB
"""What a policy may ask for: a batch is one frame, and its last entry may reach over this."""
BATCH_WINDOW_US_MAX: Final = 1_000_000
"""What a policy may ask for, in microseconds: who waits longer does not want a stream of messages."""

# Values with tensors in them (docs/wire.md section 8).
VALUE_DEPTH_MAX: Final = 64
"""Lists and dicts within each other: every reader's stack holds so many, wherever it reads."""
VALUE_TENSORS_MAX: Final = 1024 * 1024
"""Tensors of one value: a hundred of bytes of a hostile message cost its reader one array."""

# Files of settings.
TOML_BYTES_MAX: Final = 256 * KIB
"""Thousands of roles and tenants; what is longer was not written for this."""
TOML_LEVELS_MAX: Final = 16
"""Levels of one key; settings have three."""

# Names.
TOPIC_BYTES_MAX: Final = 512
TOPIC_LEVELS_MAX: Final = 32
NAME_BYTES_MAX: Final = 128
"""Client, group and queue-group names: they stand in logs and tables."""

# Per session in the broker.
SESSIONS_MAX: Final = 4096
SUBSCRIPTIONS_PER_SESSION_MAX: Final = 4096
TOPICS_PER_SESSION_MAX: Final = 65_536
STREAMS_PER_SESSION_MAX: Final = 64
"""Chunked messages that a peer may have open at once."""
CONTROL_QUEUE_BYTES_MAX: Final = 8 * MIB
"""Replies that wait for a peer that does not read; beyond this the session is closed."""
QUEUED_BYTES_MAX: Final = 512 * MIB
"""Results of collectives that wait for such a peer: OPERATIONS_AHEAD times ROUNDS_AHEAD of the longest chunks."""
TOPICS_MAX: Final = 131_072
"""Of each tenant. At 1 KiB each: 100,000 of clients, and inboxes and the broker's own topics, which count too."""
GROUPS_MAX: Final = 1024
"""Of each tenant, at the same time."""
WORLD_SIZE_MAX: Final = 1024

# Queues and windows.
BROKER_POOL_BYTES_MAX: Final = 256 * MIB
"""Chunk buffers that the broker keeps for reuse; in steady state it needs a few times the publishers' window."""
PUBLISH_WINDOW_MESSAGES: Final = 4096
"""Messages of one topic that a publisher may send ahead of the broker's credit."""
PUBLISH_WINDOW_BYTES: Final = 2 * MIB
"""Bytes of one topic that a publisher may send ahead of the broker's credit: the memory that a slow reader can cost,
and what a control message may find in front of it in the sockets' buffers, which hold many MiB when they may. It is
what 10 Gbit/s carry in 1.7 ms; a longer way needs more (publish_window_bytes)."""
QUEUE_MESSAGES: Final = 1024
"""Default bound of a subscription, in messages that the application has not taken."""
QUEUE_MESSAGES_MAX: Final = 1_000_000
QUEUE_BYTES: Final = 64 * MIB
"""Default bound of a subscription in bytes; one longer message may always be under way."""
QUEUE_BYTES_MIN: Final = 64 * KIB
QUEUE_BYTES_MAX: Final = 4096 * MIB
"""What one subscription may ask the broker to hold for it."""
RETAINED_BYTES_MAX: Final = 1024 * MIB
"""What all topics of a tenant together keep for replay; beyond it the oldest topics let go."""
STREAM_LAG_BYTES_MAX: Final = 64 * MIB
"""How far a subscription that drops may lag behind a message that is under way before it gives that message up."""
RING_MESSAGES: Final = 1024
RING_BYTES: Final = 4 * MIB
"""What a topic keeps for replay by default."""
RING_MESSAGES_MAX: Final = 1_000_000
"""What a policy may ask for: a message costs memory even when it has no bytes."""
DECLARATIONS_MAX: Final = 1024
"""Filters with declared policies, of all clients and the configuration together: they last while the broker lives."""
MESSAGE_BYTES_MAX: Final = 1 << 62
"""What a frame may announce as a message's length, and a policy set as the longest: sums of it fit 64 bits."""
INBOX_MESSAGES: Final = 65_536
"""Replies under way to one session."""

# Requests.
REQUESTS_FOLLOWED_MAX: Final = 16_384
"""Requests of one session of which the broker knows who has yet to reply; of more, it forgets the oldest."""
REPLIES_AHEAD: Final = 256
"""Replies that a responder may send to one request before the requester has taken some, the last one not counted."""
REPLIES_AHEAD_BYTES: Final = 8 * MIB
"""The same in bytes; may be passed by one reply."""
REPLIES_WAITING_MAX: Final = 65_536
"""Replies to one request that wait for its requester: those of 256 responders that use all their credit."""
REPLY_STREAMS_MAX: Final = 256
"""Requests that a synchronous client answers with generators at once, and an asynchronous responder with tasks."""
REQUESTS_REMEMBERED: Final = 4096
"""Requests that a responder remembers, to know one again that is repeated."""
REQUESTS_REMEMBERED_S: Final = 60.0
"""How long it remembers them: longer than a requester's tries follow each other."""
REPLIES_KEPT_BYTES: Final = 64 * KIB
"""Replies to one request that are kept in case it is repeated; when they are longer, the function runs again."""
REPLIES_KEPT_BYTES_MAX: Final = 16 * MIB
"""Replies to all remembered requests of a responder; beyond it the oldest are forgotten."""
HANDLERS_WAITING_MAX: Final = 32
"""Handlers of one client that wait for a request at the same time, each of which needs a thread."""

# Pressure (docs/wire.md section 9).
PRESSURE_INTERVAL_NS: Final = 100_000_000
"""Between announcements of the same loss: who looks at them wants to act, not to count."""
PRESSURE_ANNOUNCEMENTS_MAX: Final = 256
"""At once: a batch of them is about 80 KiB, and with the longest names less than one frame takes."""
PRESSURE_WAITING_MAX: Final = 16_384
"""Subscriptions times topics whose losses wait to be announced; of more, only how many messages were lost."""
PRESSURE_SUBSCRIPTIONS_MAX: Final = 64
"""Subscriptions that the answer about one topic lists: with the longest names they fit into a frame's body."""
DROPPED_TOPICS_MAX: Final = 256
"""Topics of which a client tells at once what it has dropped; a body holds as many of the longest names."""

# Work queues.
LEASE_S: Final = 30.0
"""How long a worker may take for a message before another one gets it."""
LEASE_S_MAX: Final = 7 * 86_400.0
"""What a policy may ask for: a job of a week."""
DELIVERIES_MAX: Final = 5
"""Deliveries of one message before it goes to the dead-letter topic: what five workers could not do, nobody can."""
DELIVERIES_BOUND_MAX: Final = 1_000_000
"""What a policy may ask for; 0 sets no bound."""
WORK_MESSAGES_MAX: Final = 65_536
"""Jobs of one queue group on one topic, waiting or being worked on, before the topic's publishers are held back."""
WORK_BYTES_MAX: Final = 256 * MIB
"""Their bytes; one longer job may always be there."""
WORK_GROUPS_MAX: Final = 64
"""Queue groups with acknowledgement on one topic. They outlive their members, and each wants every message."""
LATE_SETTLEMENTS_MAX: Final = 1024
"""Jobs whose lease ran out that a worker may still acknowledge: a few times what one works on at once."""
REFUSAL_DELAY_S_MAX: Final = 86_400.0
"""How long a refused job may be put off, in seconds; whoever plans further ahead needs a calendar, not a queue."""
PRIORITY_MAX: Final = 9
"""Of a job; 0 is the lowest and the default."""

# Transports.
IOV_BUFFERS_MAX: Final = 1024
"""Buffers of one gathered write or scattered read: Linux's IOV_MAX (limits.h, UIO_MAXIOV)."""
LISTEN_BACKLOG: Final = 1024
"""Connections that wait to be accepted: every rank of the largest group may dial at the same moment."""
NETWORK_BACKLOG: Final = 4096
"""The same at addresses of a network, as the system allows (net.core.somaxconn): beyond that the kernel drops who
dials, and they try again after a second, also those who come in the middle of thousands of strangers."""
LOCAL_SEND_BUFFER_BYTES: Final = 1 * MIB
"""SO_SNDBUF of Unix-domain sockets: the default holds less than one chunk, so writer and reader would take turns."""
SOCKET_PATH_BYTES_MAX: Final = 107
"""sun_path without its closing NUL (unix(7))."""

# Identities.
TOKENS_MAX: Final = 65_536
"""Of one file, which is read as a whole when it changes."""
TOKENS_BYTES_MAX: Final = 64 * MIB
"""Of that file; a token takes some 300."""
CERTIFICATE_FILE_BYTES_MAX: Final = 16 * MIB
"""Of a list of revocations, or of an authority's list of what it has signed: some hundred thousand."""
USERS_MAX: Final = 1024
"""Users of this host that the configuration lets in by name."""
AUDIT_TEXT_MAX: Final = 2048
"""Characters of a text in it: the name in a hello may have 64 KiB, and whoever says it need not be let in."""
AUDIT_EVENTS_PER_S_MAX: Final = 1000
"""Lines of the audit log in a second; of more, it says how many there were. Nobody fills a disk by being refused."""
REFUSAL_LOG_INTERVAL_S: Final = 10.0
"""Between two warnings of the log that say the same of sessions that are let in by --insecure."""

# TLS.
TLS_OPENING_MAX: Final = 256
"""Connections of one listener whose handshake is under way; then the oldest goes. Each holds up to 42 KiB and two
descriptors, and has hello_timeout_s."""
TLS_EARLY_BYTES_MAX: Final = 128 * KIB
"""What is kept of what is sent before the handshake is over: a greeting, which is all that anybody sends by then."""
TLS_SILENT_BYTES_MAX: Final = 32 * KIB
"""What a connection may send at once without saying anything, as 1,200 changes of keys, which cost some 20 us each. A
record that is not whole yet counts, and is at most 16.3 KiB long."""
TLS_SILENT_BYTES_PER_S: Final = 4 * KIB
"""And how much of that each second after: 150 changes, some 3 ms. TLS asks for one in 2^24 records."""
TLS_ANSWERS_BYTES_MAX: Final = 64 * KIB
"""What waits of TLS's own answers, as to changes of keys, for a peer that does not read."""
TLS_CLOSE_S: Final = 0.1
"""How long a close waits for room for what is encrypted already, in the rare case that the kernel had none."""

# HTTP.
HTTP_CONNECTIONS_MAX: Final = 128
"""Connections to the HTTP interface: scrapers, and a dashboard takes some six. Each takes a descriptor; they get an
eighth of these at most."""
HTTP_RESERVED: Final = 8
"""And where connections have none left but those in reserve, of which sessions need the most."""
HTTP_ASK_S: Final = 10.0
"""How long a connection may take until its first request is whole, with the handshake of TLS."""

# UCX (docs/wire.md section 21).
UCX_RING_BYTES: Final = 4 * MIB
"""What one end may have sent that the other has not read, and so the memory that an end has for each direction."""
UCX_PIECE_BYTES: Final = 512 * KIB
"""Of one message of UCX at most: the next hop begins when the first of them is there."""
UCX_START_TIMEOUT_S: Final = 30.0
"""How long the first process of the carriers may take to load UCXX, which is some hundred megabytes."""
UCX_LINGER_S: Final = 60.0
"""How long a carrier whose owner has closed waits for a peer that takes nothing."""

# Shared memory (docs/wire.md section 13).
SHARED_PAGE_BYTES: Final = 4096
"""Arenas and the blocks in them are multiples of this, the processor's page."""
SHARED_START_BYTES: Final = 128
"""Where the first array in shared memory begins, and so each as far behind the beginning of a page: not a little before
or behind what programs copy it to and from, numpy's arrays (16 bytes), `bytes` (48) and PyTorch's (64), which some
processors would copy a byte at a time (broker/copy_bytes.h)."""
LARGE_PAGE_BYTES: Final = 2 * MIB
"""What the processor maps by one entry of its tables instead of 512."""
LARGE_PAGE_BLOCK_BYTES_MIN: Final = MIB
"""Blocks from this length on are made of large pages: of shorter ones few may be used of the many that lie in one."""
SHARED_BYTES_MIN: Final = 32 * KIB
"""Shorter payloads go through the socket: a copy or two more cost less than what keeps account of a block."""
ARENA_BYTES: Final = 64 * MIB
"""Blocks of one size are made together, as many as fit into this, so that files are few. Pages that are never written
to take no memory."""
ARENAS_MAX: Final = 64
"""Arenas of one publisher. The broker has a descriptor and a mapping for each, each reader a mapping."""
SHARED_BYTES_MAX: Final = 1024 * MIB
"""What all arenas of a publisher may be long; what has no place in them goes through the socket. Pages that are never
written to cost nothing, but a process has addresses for 128 TiB, and a broker 4,096 publishers."""
ARENA_BYTES_MAX: Final = SHARED_BYTES_MAX + SHARED_PAGE_BYTES
"""What a file may say of its length: as much, and what is before the first block."""
ARENAS_BYTES_MAX: Final = SHARED_BYTES_MAX + ARENAS_MAX * SHARED_PAGE_BYTES
"""What the files of a publisher's arenas may be long together."""
ARENA_SPARSE: Final = 4
"""When the messages in an arena whose publisher is gone are no more than this part of it, a fourth, the broker copies
what topics retain and queues hold of them: so they cost at most four times what they are long."""
SHARED_CHARGE_SHIFT: Final = 6
"""A shared message takes a 64th of its bytes of its topic's credit, at most a frame's: they wait in nobody's socket,
but they do wait. With the window of 2 MiB a publisher is at most 128 MiB ahead."""
SHARED_AHEAD_BYTES: Final = 12 * MIB
"""Blocks in use, and at least two, from which on a publisher waits a moment for one to come back before it takes
another: memory that goes round stays in the processor's cache, which is several times faster."""
SHARED_PATIENCE_S: Final = 0.001
"""The moment, and what a reader takes that reads a GB/s. Who is slower, or keeps what it reads, is not waited for."""
STREAMED_BYTES_MIN: Final = 4 * MIB
"""From this length on a copy into shared memory goes past the processor's caches: measured 1.3 to 1.7 times as fast as
one through them, at 1 MiB 0.9 times."""
RELEASE_BYTES: Final = MIB
"""A reader says that it is done with so much at once, or when it waits."""
LOANS_MAX: Final = 65_536
"""Shared messages of a publisher that are under way or held by readers."""
LEASES_MAX: Final = 65_536
"""Shared messages that a reader has not released, of all publishers; what is more comes in chunks."""
LINGERING_MAX: Final = 1024
"""Readers whose sessions are over and that have yet to see it: each has a descriptor in the broker. Of more, the oldest
count as gone."""
DESCRIPTORS_WAITING_MAX: Final = 128
"""Descriptors that have arrived ahead of the frames that speak of them."""

# Lines (docs/wire.md section 20).
LINE_DATA_BYTES: Final = 256 * KIB
"""What a line holds that its slowest reader has not read: some 2,000 small messages, few enough for the caches."""
LINE_READERS_MAX: Final = 8
"""Sessions that read a line: the publisher looks at a word of each for every message."""
LINES_PER_SESSION_MAX: Final = 16
"""Lines that one session writes; each is a mapping in the broker, and one at the publisher and each reader."""
LINE_OFFER_S: Final = 10.0
"""How long an offered line waits for its publisher, which begins it as soon as it reads what the broker says."""
LINES_MAX: Final = 128
"""Lines of each tenant: the broker looks at all of them before whatever depends on what was published."""
LOOK_US: Final = 0
"""How long a client's thread looks at its lines before it sleeps, while that pays. Not at all unless it is asked for:
where both sides have a processor each, it gains much, and elsewhere nothing."""
LOOK_US_MAX: Final = 1000
"""That long no other thread of a client gets its lock, or Python's."""
LINE_AFTER_MESSAGES: Final = 8
"""Small messages, each in a frame of its own, after which a topic may get a line."""
LINE_AGAIN_MESSAGES: Final = 64
"""And if it could not, after which it is looked again."""
LINE_AFTER_MESSAGES_MAX: Final = 65_536
"""After a line that ended soon it takes four times as many as before, up to so many."""
LINE_LASTING_MESSAGES: Final = 1024
"""A line that has carried fewer has ended soon."""
LINE_QUEUE_MESSAGES_MIN: Final = 64
"""Who wants fewer messages unread gets them from the broker, which counts them one by one."""
LINE_SHARED_PARTS: Final = 4
"""A message in shared memory goes over a line if it is no longer than this part of its readers' queue_bytes, a fourth:
some are under way, and a reader without credit ends the line."""

# Collectives.
ROUNDS_AHEAD: Final = 8
"""Chunks of an operation that a rank sends ahead of the results: bounds what the broker holds per rank."""
OPERATIONS_AHEAD: Final = 64
"""Operations of a group that a rank may have started and not finished; and so many sends, and so many receives."""
MISMATCH_GRACE_NS: Final = 250_000_000
"""After a mismatch is seen the broker waits this long for the other ranks' claims, to name them all."""
FAILED_OPERATIONS_MAX: Final = 1024
"""Failures of a group that are kept for ranks that arrive late; about older ones these hear the same words."""
DIMENSIONS_MAX: Final = 32
"""Axes of a collective's array: what every numpy can hold."""
CHUNK_BYTES_MULTIPLE: Final = 16
"""A collective's chunk is a multiple of this, the longest element (complex128), so no element is ever split."""
BUCKET_BYTES: Final = 25 * MIB
"""Gradients that are reduced in one call: the default of PyTorch DDP."""
COLLECTIVE_TIMEOUT_S: Final = 60.0
FEEDBACK_NAMES_MAX: Final = 65_536
"""Tensors of a group whose lost parts a member keeps: each takes memory until the group is left."""

# The flight recorder of a group (docs/decisions/0017-who-is-late.md).
RECORDED_OPERATIONS: Final = 128
"""Operations of a group that are kept: several steps of a training loop that reduces its gradients in buckets."""
RECORDED_ARRIVALS_MAX: Final = 16_384
"""Ranks times operations that are kept of one group: about 2 MiB."""
FAILURES_OF_GONE_GROUPS: Final = 8
"""Of each tenant: a job whose ranks all end over a failure has no group any more by the time that somebody looks."""
STRAGGLER_OPERATIONS: Final = 64
"""Operations over which lateness is taken: a rank that begins to be late, or stops, is seen within half of these."""
STRAGGLER_ARRIVALS_MAX: Final = 4096
"""Ranks times operations that are looked at for that: a few milliseconds of the broker's thread."""
LATE_NS: Final = 1_000_000
"""Ranks that come within a millisecond wait for no straggler, but for the network and their processors."""
LATE_OPERATIONS_MIN: Final = 2
"""Whoever was late once has had something else to do."""
GROUP_REPORT_INTERVAL_NS: Final = 1_000_000_000
"""Between two words of the broker about who is late or stuck in one group."""
STUCK_NS: Final = 1_000_000_000
"""An operation that has not moved for so long is announced."""
WAITS_S: Final = 0.3
"""What has not moved for so long waits, say `stuck` and the dashboard: longer than a busy machine lets a rank stand."""
NAMED_WITHIN_S: Final = 1.0
"""A rank that stops in the middle of an operation is named within this. Until `stuck` can name it, pass at most:

    ms    by star and on a board            ms    over links
                                            100   an operation that takes LINK_REPORT_S is long, and is told of
                                            100   at the members' next tick (TICK_S of both drivers)
    50    the broker's next tick sees that  50    that nothing moves (TICK_S of server.py)
    300   WAITS_S                           300   WAITS_S
    350   in all                            550   in all

The page is told of it by the next look, at most 250 ms later (INTERVAL_S of admin/events.py), unless there is so much
to see that looks are rarer; the command takes what Python takes to start. A test adds this up, and
`python -m tests.system.naming` measures it.
"""
STANDS_STILL_NS: Final = 40_000_000
"""Where an operation has not moved for so long, from one tick to the next one, the broker looks whether processes of
members are ending."""
PROCESSES_AT_ONCE: Final = 32
"""It asks that of so many in one tick, and of the others in the next ones: 10 us each (measured)."""
ENDING_THREADS_MAX: Final = 256
"""A process with more threads is asked again later: in one that was killed most are gone at once."""
QUORUM_ARRAY_BYTES_MAX: Final = 64 * MIB
"""Of an operation with a quorum: the broker holds it whole for each rank, because it learns late who takes part."""
QUORUM_KEPT_MAX: Final = 256
"""Closed operations whose results are kept for ranks that have not come: some seconds of a fast loop. A rank that is
further behind had better take the state of the others."""
QUORUM_KEPT_BYTES_MAX: Final = 256 * MIB
"""Bytes of those results in a group, of which the newest is always kept; and of contributions that wait for the next
operation."""

# Boards (docs/wire.md section 14).
BOARDS_MAX: Final = 256
"""Groups of a tenant that have a board at the same time: the broker has a descriptor and a mapping for each."""

# Permissions and tenants.
ROLES_MAX: Final = 1024
"""Roles that a configuration may define: it is written by people."""
ROLES_NESTED_MAX: Final = 16
"""How deep roles may include one another."""
RULES_MAX: Final = 1024
"""Filters that allow or deny one verb in all roles of a session: each new topic is compared with all of them."""
RULE_STEPS_MAX: Final = 100_000
"""Filters looked at to find out what one filter can match, some 20 ms; what takes longer is refused."""
DENIALS_LOGGED_MAX: Final = 100
"""Of one session: nobody fills a log by asking for what they may not have."""
TENANTS_MAX: Final = 1024
"""Tenants of one broker: each has topics of its own."""

# Time.
HEARTBEAT_INTERVAL_S: Final = 5.0
HEARTBEAT_TIMEOUT_S: Final = 30.0
ANSWER_TIMEOUT_S: Final = 5.0
"""How long a client waits for an answer of the broker's, unless its caller says."""
CLOSE_TIMEOUT_S: Final = 1.0
"""How long an orderly close waits for the queued frames to leave."""
DRAIN_TIMEOUT_S: Final = 5.0
"""How long the daemon waits at its end for what is queued."""
RECONNECT_DELAY_FIRST_S: Final = 0.05
RECONNECT_DELAY_MAX_S: Final = 2.0
CONNECT_TIMEOUT_S: Final = 5.0

# Logs.
LOG_EVENTS_MAX: Final = 100
"""Lines of one event in an interval; of more, only how many there were."""
LOG_INTERVAL_S: Final = 10.0
LOG_EVENT_NAMES_MAX: Final = 1024
"""Events that are told apart: several times as many as the code has names for."""

# Measurements.
REPORT_INTERVAL_MS: Final = 1000
"""Between two frames in which a client says how long messages took to reach it: about 150 bytes each."""
REPORTED_MAX: Final = 1 << 53
"""What a number of such a report may be."""
LATENCY_NS_MAX: Final = 3_600_000_000_000
"""What took longer than an hour was not under way all the time: it counts as an hour."""
BATCH_SAMPLES: Final = 8
"""Messages of a batch whose time is looked at, evenly over it, for all of it."""
TURNS_UNMEASURED: Final = 15
"""Of 16 turns of the broker one is timed: a bit mask."""
OPERATIONS_OBSERVED: Final = 16
ARRIVALS_OBSERVED: Final = 1024
"""Of a group's last operations, so many at most are measured in 50 ms, and so many arrivals, though one operation at
least: a few tens of microseconds."""
POLL_MS_MAX: Final = (1 << 31) - 1
"""What the system call takes, an int: 24 days. Whoever has longer to wait looks at the clock then."""
