//! Where in the file each writer's numbers are.

pub const PAGE: u64 = 4096;
pub const WRITERS: usize = 3;
/// Each writer's numbers: on two pages that all share, on pages of its own that it writes directly or
/// punches, and past the middle of the last page, which the first writer cuts off and makes again.
pub const KINDS: usize = 5;
pub const SLOTS: usize = WRITERS * KINDS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Near,
    Far,
    Direct,
    Hole,
    Tail,
}

pub const ALL: [Kind; KINDS] = [Kind::Near, Kind::Far, Kind::Direct, Kind::Hole, Kind::Tail];

pub const NEAR: u64 = 0;
pub const FAR: u64 = 17;
pub const HOLES: u64 = 32;
/// Far from pages that others make dirty through mappings: the kernel does not promise coherence of
/// direct writes with those of one large folio.
pub const DIRECT: u64 = 512;
pub const TAIL: u64 = 1024;
pub const FILE_BYTES: u64 = (TAIL + 1) * PAGE;

/// The hunter's own words, on the shared pages: as many, at these places.
pub const OWN: [u64; 4] = [2048, 2056, FAR * PAGE + 2048, FAR * PAGE + 3000 / 8 * 8];

/// Which of a writer's numbers.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub writer: usize,
    pub kind: Kind,
}

impl Slot {
    pub fn number(self) -> usize {
        self.writer * KINDS + self.kind as usize
    }

    pub fn of(number: usize) -> Slot {
        Slot { writer: number / KINDS, kind: ALL[number % KINDS] }
    }

    /// Its first byte in the file.
    pub fn at(self) -> u64 {
        let writer = self.writer as u64;
        match self.kind {
            Kind::Near => NEAR * PAGE + writer * 8,
            Kind::Far => FAR * PAGE + writer * 8,
            Kind::Hole => (HOLES + writer) * PAGE,
            Kind::Direct => (DIRECT + writer) * PAGE,
            Kind::Tail => TAIL * PAGE + 2048 + writer * 8,
        }
    }

    pub fn page(self) -> u64 {
        self.at() / PAGE * PAGE
    }
}

macro_rules! ways {
    ($($name:ident $text:literal),* $(,)?) => {
        /// How a file is changed, or its proofs are disturbed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Way { $($name),* }

        pub const WAYS: [(Way, &str); [$(Way::$name),*].len()] = [$((Way::$name, $text)),*];
    };
}

ways! {
    Write "write",
    CopyRange "copy_file_range",
    Splice "splice",
    MapOpen "store (open)",
    MapClosed "store (closed)",
    MapOld "store (kept mapping)",
    MapProtected "store (after mprotect)",
    Msync "msync",
    SyncRange "sync_file_range",
    Fsync "fsync",
    Direct "O_DIRECT",
    HoleWrite "write into a hole",
    HoleStore "store into a hole",
    Punch "punch",
    ZeroRange "zero_range",
    Cut "ftruncate",
    CutByName "truncate",
    Extend "extend",
    Visit "read-only open",
    Hold "idle writer",
    Refused "O_NONBLOCK refused",
    Look "look (read)",
    LookMapped "look (mapping)",
    LookLate "look (after open)",
    LookAgain "look (descriptor kept)",
    LookDirect "look (O_DIRECT)",
}

impl Way {
    pub fn name(number: usize) -> &'static str {
        WAYS.get(number).map_or("?", |(_, name)| name)
    }
}
