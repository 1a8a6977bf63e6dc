CREATE TABLE transfer (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    from_id integer NOT NULL REFERENCES account,
    to_id integer NOT NULL REFERENCES account,
    amount numeric(12, 2) NOT NULL CHECK (amount > 0)
);
