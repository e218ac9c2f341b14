//! ELF files: a firmware image is one, as `make firmware` leaves it.

use std::fs;
use std::path::Path;

use crate::explain::Explain;
use anyhow::{Result, ensure};
use object::BinaryFormat;

/// Parses the image at `path` and passes it to `use_it`.
///
/// # Errors
/// The image cannot be read, or is no ELF file; or those of `use_it`.
pub(crate) fn with_image<T>(
    path: &Path,
    use_it: impl FnOnce(&object::File<'_>) -> Result<T>,
) -> Result<T> {
    let name = path.display();
    let remedy = "name an image that `make firmware` has built";
    let bytes = fs::read(path).explain(format_args!("cannot read {name}"), remedy)?;
    let image = object::File::parse(&*bytes)
        .map_err(anyhow::Error::from)
        .and_then(|image| {
            ensure!(image.format() == BinaryFormat::Elf, "it is of another kind");
            Ok(image)
        });
    use_it(&image.explain(format_args!("{name} is no ELF file"), remedy)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_image_is_named_with_the_remedy() {
        let error = with_image(Path::new("/nonexistent.elf"), |_| Ok(())).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("/nonexistent.elf") && error.contains("make firmware"),
            "{error}"
        );
    }
}
