CREATE TABLE account (
    id integer PRIMARY KEY,
    name text NOT NULL UNIQUE,
    balance numeric(12, 2) NOT NULL CHECK (balance >= 0)
);
