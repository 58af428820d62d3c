-- Who may use the API over TCP. Only hashes are kept.
CREATE TABLE tokens (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL,
    scope         TEXT NOT NULL CHECK (scope IN ('read', 'write')),
    sha256        BLOB NOT NULL UNIQUE CHECK (length(sha256) = 32),
    created_at_ms INTEGER NOT NULL
) STRICT;
