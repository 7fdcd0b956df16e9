//! The table.

/// Where a rule stands.
pub enum Standing {
    /// These tests of the suite assert it.
    Tested(&'static [&'static str]),
    /// It is about something that pageferry does not do.
    NotApplicable(&'static str),
    /// It needs something that is not built yet.
    Waits(&'static str),
}

use Standing::{NotApplicable as N, Tested as T, Waits as W};

const ANON: &str = "pageferry caches files; anonymous and private memory stays the kernel's";
const SECOND: &str = "a second device on one file";

/// Number, short wording, standing.
pub const RULES: &[(u32, &str, Standing)] = &[
    (
        1,
        "after filling, syncing and moving all pages the device reads the same bytes",
        T(&["rfc::migrate_file"]),
    ),
    (
        2,
        "pages that the CPU never touched are fetched, never shown wrong",
        T(&["pins::the_device_reads_what_the_file_holds_and_moves_it_once"]),
    ),
    (
        3,
        "a mix of resident and home pages: all right, none copied twice",
        T(&[
            "rfc::migrate_file_fault",
            "changes::writes_through_the_cache_reach_the_next_pin_and_only_they_move",
        ]),
    ),
    (
        4,
        "a page that is dirty in the page cache is fetched with its newest bytes and stays dirty there",
        T(&["changes::writes_through_the_cache_reach_the_next_pin_and_only_they_move"]),
    ),
    (
        5,
        "fetching a page under the kernel's writeback corrupts nothing",
        T(&["kernel::writeback_beside_fetches_corrupts_nothing"]),
    ),
    (
        6,
        "partial success leaves what moved in order",
        T(&["failures::a_failed_copy_in_shows_nothing"]),
    ),
    (7, "outputs of a failed call are not to be used", N("errors carry no outputs")),
    (
        8,
        "many round trips keep the bytes and give the memory back",
        T(&[
            "pins::ten_times_the_device_runs_through_it",
            "pins::everything_dropped_leaves_the_device_empty",
        ]),
    ),
    (9, "a page of device A is not moved to device B directly", W(SECOND)),
    (10, "private copies never reach the file", N(ANON)),
    (11, "a private mapping's untouched page is the file's", N("only shared mappings are made")),
    (
        12,
        "large units are moved whole or split, right either way",
        T(&["pins::ten_times_the_device_runs_through_it"]),
    ),
    (
        13,
        "host memory of moved pages is really freed",
        N("the page cache keeps its pages; the kernel reclaims them as ever"),
    ),
    (14, "refused kinds are refused before anything moves", T(&["failures::only_regular_files"])),
    (
        15,
        "two threads moving one range move each page once",
        T(&["kernel::two_threads_that_pin_one_range_move_each_page_once"]),
    ),
    (
        16,
        "a load of an away page gets the device's bytes, and the page is home",
        T(&["mapping::a_load_of_an_away_page_waits_and_gets_the_devices_bytes"]),
    ),
    (
        17,
        "a store to an away page lands on top of the device's bytes",
        T(&["mapping::a_store_to_an_away_page_lands_on_top_of_the_devices_bytes"]),
    ),
    (
        18,
        "a read of an away page gives what the mapping shows",
        T(&[
            "rfc::migrate_fault_read_buf",
            "pins::kept_away_bytes_are_seen_by_every_way_through_the_cache",
        ]),
    ),
    (
        19,
        "a write to part of an away page keeps the rest",
        T(&["changes::a_write_over_away_bytes_keeps_the_rest_of_the_page"]),
    ),
    (
        20,
        "every reading system call gives device bytes",
        T(&[
            "kernel::every_reading_call_gives_released_bytes",
            "guards::whoever_opens_the_file_sees_what_the_device_wrote",
        ]),
    ),
    (
        21,
        "many threads reading one away page: one return, equal bytes",
        T(&["stress::every_byte_is_accounted_for"]),
    ),
    (
        22,
        "nobody sees zeros or half-copied bytes on the way home",
        T(&["stress::every_byte_is_accounted_for"]),
    ),
    (23, "nobody sees half a page on the way out", T(&["stress::every_byte_is_accounted_for"])),
    (
        24,
        "touching one away page leaves others away, but for documented batching",
        T(&["mapping::a_load_of_an_away_page_waits_and_gets_the_devices_bytes"]),
    ),
    (
        25,
        "read-ahead never maps an away page as if it were home",
        T(&["stress::every_byte_is_accounted_for"]),
    ),
    (
        26,
        "a status query moves nothing",
        T(&["pins::kept_away_bytes_are_seen_by_every_way_through_the_cache"]),
    ),
    (
        27,
        "process_vm_readv and the like read device bytes",
        T(&["mapping::readers_of_a_processs_memory_see_the_devices_bytes"]),
    ),
    (
        28,
        "a second device read of a cold range faults no more",
        T(&["pins::the_device_reads_what_the_file_holds_and_moves_it_once"]),
    ),
    (
        29,
        "a device write is visible in the mapping and by pread",
        T(&[
            "mapping::mapping_over_a_live_write_pin_and_over_away_pages_hides_nothing",
            "pins::a_release_writes_exactly_the_pins_bytes",
        ]),
    ),
    (
        30,
        "a device write without permission changes nothing",
        T(&["pins::views_stay_inside_their_pins"]),
    ),
    (
        31,
        "a device read outside of what is pinned is an error",
        T(&["pins::views_stay_inside_their_pins"]),
    ),
    (
        32,
        "a device read of its own away page moves nothing",
        T(&["pins::kept_away_bytes_are_seen_by_every_way_through_the_cache"]),
    ),
    (33, "device B reads what is away on A", W(SECOND)),
    (
        34,
        "read-only mapping of an away page: device writes refused",
        N("a pin's mode, not a CPU mapping's protection, decides what the device may do"),
    ),
    (35, "and allowed again after", N("as C34")),
    (
        36,
        "no device access through what is gone",
        T(&["changes::truncation_cuts_pins_and_what_grows_back_is_zero"]),
    ),
    (
        37,
        "unmapping during a device read harms nothing",
        T(&["stress::every_byte_is_accounted_for"]),
    ),
    (
        38,
        "a snapshot tells states and moves nothing",
        T(&[
            "pins::kept_away_bytes_are_seen_by_every_way_through_the_cache",
            "pins::eviction_on_request_spares_pins_and_loses_nothing",
        ]),
    ),
    (39, "bad arguments have no effect", T(&["pins::ranges_are_checked"])),
    (40, "a read-only file cannot be written by the device", T(&["pins::ranges_are_checked"])),
    (
        41,
        "device writes survive on storage after fsync",
        T(&["rfc::device_writes_survive_the_page_cache"]),
    ),
    (
        42,
        "dirty on every way home: fault, read, eviction, close",
        T(&[
            "mapping::a_load_of_an_away_page_waits_and_gets_the_devices_bytes",
            "pins::kept_away_bytes_are_seen_by_every_way_through_the_cache",
            "pins::eviction_on_request_spares_pins_and_loses_nothing",
            "pins::everything_dropped_leaves_the_device_empty",
        ]),
    ),
    (43, "fsync through us covers away pages", T(&["pins::ten_times_the_device_runs_through_it"])),
    (
        44,
        "so do the other ways to sync",
        T(&[
            "guards::whoever_opens_the_file_sees_what_the_device_wrote",
            "rfc::device_writes_survive_the_page_cache",
        ]),
    ),
    (45, "an asynchronous msync need not wait", N("not offered")),
    (
        46,
        "a page that the device only read leaves times and blocks alone",
        T(&["pins::what_the_device_only_read_is_not_written"]),
    ),
    (
        47,
        "holes stay holes unless written",
        T(&["pins::holes_stay_holes_unless_the_device_writes_them"]),
    ),
    (
        48,
        "times move no later than write-back",
        T(&["changes::times_move_no_later_than_the_write_back"]),
    ),
    (
        49,
        "a store after the return is tracked again",
        T(&["mapping::own_stores_reach_the_next_pin_and_only_their_pages_move"]),
    ),
    (
        50,
        "a second device write after fsync is persisted by the next",
        T(&["changes::each_sync_stores_what_the_device_wrote_before_it"]),
    ),
    (
        51,
        "a page written while the device modifies it: some consistent version",
        T(&["pins::byte_disjoint_write_pins_share_a_page"]),
    ),
    (
        52,
        "an unmodified page comes back equal",
        T(&["pins::the_device_reads_what_the_file_holds_and_moves_it_once"]),
    ),
    (
        53,
        "an unmodified writable page does not become dirty",
        T(&["pins::what_the_device_only_read_is_not_written"]),
    ),
    (
        54,
        "a killed process loses at most what the flush age bounds, never mixes",
        T(&["failures::the_flusher_bounds_how_long_bytes_stay_away"]),
    ),
    (55, "truncation keeps what lies before", T(&["rfc::migrate_fault_write_buf"])),
    (
        56,
        "what grows back is zero",
        T(&[
            "rfc::migrate_fault_write_buf",
            "changes::truncation_cuts_pins_and_what_grows_back_is_zero",
        ]),
    ),
    (
        57,
        "past the end: errors for CPU accessors and device",
        T(&[
            "mapping::past_the_end_of_the_file_accessors_report_and_never_crash",
            "mapping::truncation_under_an_away_mapping_lifts_its_traps",
            "changes::truncation_cuts_pins_and_what_grows_back_is_zero",
        ]),
    ),
    (
        58,
        "truncation gives device memory back",
        T(&["changes::truncation_frees_the_device_and_forgets_away_bytes"]),
    ),
    (
        59,
        "truncation inside a page keeps its head, zeroes its tail",
        T(&[
            "changes::truncation_cuts_pins_and_what_grows_back_is_zero",
            "mapping::truncation_under_an_away_mapping_lifts_its_traps",
        ]),
    ),
    (
        60,
        "device writes past the end never show",
        T(&["changes::the_device_cannot_extend_the_file"]),
    ),
    (
        61,
        "appending to an away last page keeps both",
        T(&["changes::appending_to_an_away_last_page_keeps_both"]),
    ),
    (
        62,
        "punching inside an away range",
        T(&["changes::holes_zeroes_and_shifts_equal_a_plain_twin"]),
    ),
    (
        63,
        "zero, collapse and insert equal a twin's",
        T(&["changes::holes_zeroes_and_shifts_equal_a_plain_twin"]),
    ),
    (
        64,
        "preallocation changes no content",
        T(&["changes::holes_zeroes_and_shifts_equal_a_plain_twin"]),
    ),
    (
        65,
        "random sequences equal a twin's",
        T(&["fsx::the_cache_alone", "fsx::with_outsiders", "fsx::with_a_daemons_cache"]),
    ),
    (66, "truncation racing everything", T(&["cuts::what_was_cut_off_never_comes_back"])),
    (67, "MADV_REMOVE equals a punch", T(&["kernel::madv_remove_is_a_punched_hole"])),
    (
        68,
        "O_DIRECT reads see device bytes",
        T(&[
            "kernel::every_reading_call_gives_released_bytes",
            "guards::whoever_opens_the_file_sees_what_the_device_wrote",
        ]),
    ),
    (69, "O_DIRECT writes reach the device", T(&["kernel::direct_writes_reach_the_next_pin"])),
    (70, "O_DIRECT into away memory waits", T(&["kernel::direct_io_through_away_memory_waits"])),
    (
        71,
        "rename and unlink while away",
        T(&[
            "changes::renaming_and_unlinking_leave_away_bytes_away",
            "changes::an_unlinked_file_works_on",
        ]),
    ),
    (
        72,
        "rename-over leaves the old file's pages the old file's",
        T(&["rfc::a_file_renamed_over_another_keeps_its_own_pages"]),
    ),
    (73, "a read-only descriptor gives reads only", T(&["pins::ranges_are_checked"])),
    (74, "reflink and copy_file_range", T(&["kernel::reflinks_carry_released_bytes_both_ways"])),
    (75, "dropping caches loses nothing", T(&["rfc::device_writes_survive_the_page_cache"])),
    (
        76,
        "tmpfs and memfd work",
        T(&["failures::no_space_keeps_the_bytes_and_a_retry_after_making_room_works"]),
    ),
    (
        77,
        "a frozen or read-only remounted file system",
        T(&[
            "kernel::a_frozen_file_system_gets_its_bytes_later",
            "kernel::a_file_system_is_not_remounted_read_only_over_away_bytes",
        ]),
    ),
    (
        78,
        "unmapping an away range loses nothing",
        T(&["mapping::an_unmapped_away_range_is_not_lost"]),
    ),
    (79, "MADV_DONTNEED on an away range loses nothing", T(&["rfc::advice_loses_nothing"])),
    (
        80,
        "mremap of mapped ranges",
        N("a Map's address range is the cache's; moving it is not offered"),
    ),
    (81, "partial munmap", N("as C80")),
    (82, "mlock of an away range", T(&["kernel::locked_memory_comes_home_and_may_go_away_again"])),
    (83, "private copies start from device bytes", N(ANON)),
    (84, "truncation and private copies", N(ANON)),
    (85, "two mappings of one file agree", T(&["mapping::two_mappings_agree"])),
    (86, "MADV_FREE, COLD, PAGEOUT lose nothing", T(&["rfc::advice_loses_nothing"])),
    (
        87,
        "another process that maps the file sees released bytes",
        T(&["children::another_process_sees_what_was_released"]),
    ),
    (
        88,
        "another process reads device bytes",
        T(&[
            "children::another_process_sees_what_was_released",
            "guards::whoever_opens_the_file_sees_what_the_device_wrote",
        ]),
    ),
    (89, "fork and shared away pages", T(&["mapping::a_forked_child_never_reads_zeros"])),
    (90, "fork and private away pages", N(ANON)),
    (
        91,
        "what an inherited device handle does in a child",
        T(&["children::a_forked_child_is_refused_and_harms_nothing"]),
    ),
    (
        92,
        "the parent exits while away",
        N("a child inherits no mapping; what is away when a process ends is C54's"),
    ),
    (93, "exec while away", T(&["children::exec_keeps_what_was_released"])),
    (
        94,
        "two processes migrate one file",
        T(&["children::two_processes_with_caches_of_their_own_share_a_page"]),
    ),
    (
        95,
        "pinned pages are skipped by eviction",
        T(&["pins::eviction_on_request_spares_pins_and_loses_nothing"]),
    ),
    (
        96,
        "a pin of an away page holds it, right",
        T(&["pins::kept_away_bytes_are_seen_by_every_way_through_the_cache"]),
    ),
    (
        97,
        "a page locked by another migration is not waited for in a circle",
        T(&["stress::every_byte_is_accounted_for"]),
    ),
    (
        98,
        "a CPU fault racing a device page: exactly one wins",
        T(&["stress::every_byte_is_accounted_for"]),
    ),
    (
        99,
        "a device fault racing invalidation retries, boundedly",
        T(&["stress::every_byte_is_accounted_for"]),
    ),
    (100, "exclusive access", N("for anonymous memory in the kernel; a write pin is ours")),
    (101, "memory behind userfaultfd", N(ANON)),
    (
        102,
        "device full: pages stay usable, the error is documented",
        T(&["pins::device_full_is_an_error_with_numbers_and_leaves_nothing_behind"]),
    ),
    (
        103,
        "one failed allocation harms nothing",
        T(&["failures::a_failed_allocation_leaves_nothing_and_the_next_works"]),
    ),
    (104, "no host memory on return", N("the page cache takes the bytes; its errors are C107's")),
    (
        105,
        "a failed copy back is an error, never stale bytes",
        T(&[
            "failures::a_failed_write_back_keeps_the_bytes_away_until_a_retry",
            "failures::a_lost_device_is_an_error_everywhere_and_never_stale_bytes",
        ]),
    ),
    (
        106,
        "as C105 for modified, re-read for unmodified pages",
        T(&["failures::a_lost_device_is_an_error_everywhere_and_never_stale_bytes"]),
    ),
    (
        107,
        "ENOSPC: reported, kept, retried",
        T(&["failures::no_space_keeps_the_bytes_and_a_retry_after_making_room_works"]),
    ),
    (
        108,
        "reserving space before a device write",
        N(
            "decided otherwise: holes stay holes until they are written, so ENOSPC shows at the release and the bytes are kept (C107)",
        ),
    ),
    (
        109,
        "EIO of the kernel's writeback is reported by fsync",
        T(&["kernel::an_error_of_the_kernels_writeback_is_reported_by_sync"]),
    ),
    (110, "a read error installs nothing", T(&["failures::a_failed_copy_in_shows_nothing"])),
    (
        111,
        "EDQUOT and EFBIG as ENOSPC",
        T(&["kernel::the_file_size_limit_is_reported_and_keeps_the_bytes"]),
    ),
    (
        112,
        "releasing everything brings everything home, dirty if modified",
        T(&["pins::everything_dropped_leaves_the_device_empty"]),
    ),
    (
        113,
        "eviction under pressure",
        T(&["pins::ten_times_the_device_runs_through_it", "stress::every_byte_is_accounted_for"]),
    ),
    (114, "eviction needs no mapping", T(&["pins::ten_times_the_device_runs_through_it"])),
    (115, "eviction meets a locked page", T(&["stress::every_byte_is_accounted_for"])),
    (
        116,
        "closing the last handle evicts everything",
        T(&["pins::everything_dropped_leaves_the_device_empty"]),
    ),
    (
        117,
        "the device goes away in the middle of a copy",
        T(&["failures::a_lost_device_is_an_error_everywhere_and_never_stale_bytes"]),
    ),
    (
        118,
        "a freed frame shows nothing of its past",
        T(&["kernel::a_reused_frame_shows_nothing_of_its_past"]),
    ),
    (
        119,
        "after everything is closed nothing is in use",
        T(&[
            "pins::everything_dropped_leaves_the_device_empty",
            "changes::an_unlinked_file_works_on",
        ]),
    ),
    (120, "memory is charged as for ordinary pages", N("host pages are the kernel's own")),
];
