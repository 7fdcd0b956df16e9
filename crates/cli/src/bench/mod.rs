//! placeholder
pub(crate) fn bench(_: &crate::args::BenchArgs) -> anyhow::Result<bool> {
    Ok(true)
}
