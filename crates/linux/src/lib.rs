//! Every system call and all host-side unsafe code of pageferry, behind safe types.
